"""Planted errors as a test of a ranking of suspects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from noisyml.metrics.label_trust import auroc

#: Shares of the list, from its top, in which planted errors are counted.
LOOKED_AT = (0.1, 0.2)
#: Below this AUROC, or where chance may explain it, a ranking tells little.
_WEAK = 0.6
#: Standard errors of a 95 % interval.
_TWO_SIDED = 1.96


@dataclass(frozen=True)
class PlantedCheck:
    """Figures on how well a ranking finds errors that were planted on purpose.

    Attributes:
        planted: number of planted errors.
        ranked: those of them that the ranking holds.
        rows: rows of the ranking.
        auroc: probability that a planted error ranks above a row that was not planted; 0.5 is
            chance. Rows that are wrong for other reasons rank high too, so that even a perfect
            ranking stays below 1.
        error: its standard error (Hanley and McNeil, Radiology 1982).
        found: share of the planted errors among the first rows, for each share of `LOOKED_AT`.
    """

    planted: int
    ranked: int
    rows: int
    auroc: float
    error: float
    found: dict[float, float]

    @property
    def near_chance(self) -> bool:
        """True if the ranking is not clearly better than a list in random order."""
        return not (self.auroc >= _WEAK and self.auroc - _TWO_SIDED * self.error > 0.5)

    @property
    def metrics(self) -> dict[str, float]:
        """The figures by name."""
        found = {
            f"selection/planted_found_in_{round(100 * share)}_percent": value
            for share, value in self.found.items()
        }
        return {"selection/planted_auroc": self.auroc, **found}

    @property
    def sentence(self) -> str:
        """The figures in words."""
        shares = " and ".join(
            f"{value:.0%} in its first {share:.0%}" for share, value in self.found.items()
        )
        told = (
            f"Of {self.planted} errors planted on purpose the list of suspects has {shares} "
            f"(AUROC {self.auroc:.2f} ± {self.error:.2f}, chance 0.50)"
        )
        if self.near_chance:
            told += "; that is near chance: do not trust this list"
        return f"{told}."


def check_planted(
    ranking: ArrayLike, planted: ArrayLike, looked_at: Sequence[float] = LOOKED_AT
) -> PlantedCheck:
    """Compare a ranking of suspects with the errors that were planted.

    Args:
        ranking: numbers of the judged rows, the most suspicious first [n] int.
        planted: numbers of the planted errors [m] int; those that the ranking lacks count as not
            found.
        looked_at: shares of the ranking, from its top, in which to count.

    Returns:
        The figures; NaN where there is nothing to compare.

    Example:
        >>> check = check_planted(ranking=[3, 1, 0, 2, 4, 5, 6, 7, 8, 9], planted=[3, 0])
        >>> check.auroc, check.found[0.1], check.near_chance
        (0.9375, 0.5, False)
    """
    order, errors = np.asarray(ranking), np.asarray(planted)
    hit: NDArray[np.bool_] = np.isin(order, errors)
    rows, ranked = len(order), int(hit.sum())
    value = auroc(-torch.arange(rows, dtype=torch.float64), torch.from_numpy(hit))
    found = {
        share: int(hit[: max(1, round(share * rows))].sum()) / len(errors)
        if len(errors)
        else math.nan
        for share in looked_at
    }
    return PlantedCheck(
        len(errors), ranked, rows, value, _standard_error(value, ranked, rows - ranked), found
    )


def _standard_error(area: float, positives: int, negatives: int) -> float:
    """Of an area under the ROC curve (Hanley and McNeil, 1982, equation 1)."""
    if not positives or not negatives:
        return math.nan
    first, second = area / (2 - area), 2 * area**2 / (1 + area)
    variance = (
        area * (1 - area)
        + (positives - 1) * (first - area**2)
        + (negatives - 1) * (second - area**2)
    ) / (positives * negatives)
    return math.sqrt(max(0.0, variance))

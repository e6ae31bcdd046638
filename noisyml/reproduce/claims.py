"""Claims of papers on trial: two arms that differ in one thing, paired over seeds.

``claims.yaml`` says what is claimed, where, and what the two arms are. Both arms of a pair have the
same seeds: of training (weights, batches), and of the wrong labels or, where labels are right, of
the split. The difference of a pair is the claim's effect; over the pairs it has a mean, an interval
and a verdict.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from noisyml.errors import UserError, did_you_mean
from noisyml.reports.statistics import Difference, paired_difference
from noisyml.reproduce.jobs import Job, composing, has, repeated
from noisyml.storage.reading import read_yaml

if TYPE_CHECKING:
    from omegaconf import DictConfig

HERE = Path(__file__).parent
CLAIMS_FILE = HERE / "claims.yaml"
RESULTS_FILE = HERE / "claims_results.json"

Verdict = Literal["holds", "does not show", "contradicted", "open"]


@dataclass(frozen=True)
class Claim:
    """A claim and the two arms that decide on it.

    Attributes:
        name: of the claim.
        paper: identifier of the paper.
        source: place in the paper.
        statement: the claim in a sentence.
        first: overrides of the arm that should be ahead.
        second: overrides of the other arm.
        metric: name in ``metrics.json`` by which arms are compared.
        lower_is_better: True for errors.
        second_seed: key of the seed beside ``seed``.
        data: the setting in words.
        explanation: of a verdict that is not that of the paper, or empty.
        pairs: how many; the k-th has both seeds k, so that pairs are independent.
    """

    name: str
    paper: str
    source: str
    statement: str
    first: tuple[str, ...]
    second: tuple[str, ...]
    metric: str
    lower_is_better: bool
    second_seed: str
    data: str
    explanation: str
    pairs: int


@dataclass(frozen=True)
class Trial:
    """A claim with its measured arms.

    Attributes:
        claim: on trial.
        first: metric of the first arm, pair by pair.
        second: of the other.
    """

    claim: Claim
    first: tuple[float, ...]
    second: tuple[float, ...]

    @property
    def difference(self) -> Difference:
        """The first arm less the second, turned so that more is in favour of the claim."""
        sign = -1.0 if self.claim.lower_is_better else 1.0
        return paired_difference(
            [sign * value for value in self.first], [sign * value for value in self.second]
        )

    @property
    def verdict(self) -> Verdict:
        """``holds`` or ``contradicted``: the interval lies beside zero; ``open``: a single pair."""
        found = self.difference
        if found.count < 2:
            return "open"
        if found.low > 0:
            return "holds"
        return "contradicted" if found.high < 0 else "does not show"


def load_claims(file: Path = CLAIMS_FILE) -> list[Claim]:
    """All claims in the order of the file.

    Raises:
        ValueError: a setting or key that the file does not explain.
    """
    content = read_yaml(file, "reinstall noisyml")
    settings: Mapping[str, Any] = content["settings"]
    found = []
    for entry in content["claims"]:
        setting = settings[entry["setting"]]
        base = [*setting["overrides"], *entry.get("both", [])]
        found.append(
            Claim(
                name=entry["name"],
                paper=entry["paper"],
                source=entry["source"],
                statement=entry["statement"],
                first=(*base, *entry["first"]),
                second=(*base, *entry["second"]),
                metric=entry.get("metric", setting["metric"]),
                lower_is_better=entry.get("lower_is_better", False),
                second_seed=entry.get("second_seed", setting["second_seed"]),
                data=setting["data"],
                explanation=" ".join(entry.get("explanation", "").split()),
                pairs=content["pairs"],
            )
        )
    return found


def choose_claims(claims: Sequence[Claim], wanted: Sequence[str]) -> list[Claim]:
    """Those claims whose name or paper is among the words; all if there are none.

    Raises:
        UserError: a word that is neither.
    """
    known = [*dict.fromkeys([c.paper for c in claims] + [c.name for c in claims])]
    for word in wanted:
        if word not in known:
            raise UserError(
                f"There is no claim '{word}'.{did_you_mean(word, known)} "
                f"`noisyml list claims` names them."
            )
    return [c for c in claims if not wanted or c.name in wanted or c.paper in wanted]


def claim_jobs(
    claims: Sequence[Claim],
    extra: Sequence[str] = (),
    missing: Callable[[DictConfig], str | None] = lambda config: None,
) -> tuple[dict[str, list[list[Job]]], dict[str, str]]:
    """The jobs of both arms of each claim, pair by pair, and why other claims have none.

    Args:
        claims: to be tried.
        extra: words for every job.
        missing: data and weights that a configuration lacks on this machine, None if nothing.
    """
    jobs: dict[str, list[list[Job]]] = {}
    lacking: dict[str, str] = {}
    with composing() as composed:
        for claim in claims:
            arms = []
            for overrides in (claim.first, claim.second):
                words = (*overrides, *extra)
                config = composed(words)
                if not has(config, claim.second_seed):
                    raise ValueError(f"claim {claim.name}: no {claim.second_seed} to vary")
                if gone := missing(config):
                    lacking[claim.name] = gone
                seeds = [{"seed": k, claim.second_seed: k} for k in range(claim.pairs)]
                arms.append(repeated(config, words, seeds))
            if claim.name not in lacking:
                jobs[claim.name] = arms
    return jobs, lacking


def tried(claim: Claim, arms: Sequence[Sequence[Job]], runs: Path) -> Trial | None:
    """The trial of a claim by those of its pairs that are finished; None without one."""
    pairs = [
        (one.folder(runs).metrics(), other.folder(runs).metrics())
        for one, other in zip(*arms, strict=True)
        if one.is_finished(runs) and other.is_finished(runs)
    ]
    values = [(one[claim.metric], other[claim.metric]) for one, other in pairs]
    if not values or not all(math.isfinite(x) for pair in values for x in pair):
        return None
    first, second = zip(*values, strict=True)
    return Trial(claim, first, second)

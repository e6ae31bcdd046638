"""Further scores of an audit by name: columns of its tables beside the probability."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from noisyml.audit.scores.confident import confident_issues
from noisyml.audit.scores.density import density_log_odds
from noisyml.audit.scores.labels import label_margin
from noisyml.audit.scores.neighbours import neighbour_votes, simifeat, wann_votes
from noisyml.audit.scores.watched import watched_scores
from noisyml.audit.steps import Steps

if TYPE_CHECKING:
    from noisyml.audit.judging import Judgements, Progress

#: Names of scores, each a column; all are larger for labels believed right.
Score = Literal[
    "wann", "simifeat", "confident_learning", "class_density",
    "aum", "learnt", "forgetting", "loss_mixture",
]  # fmt: skip
#: Those that need a training to be watched.
WATCHED = ("aum", "learnt", "forgetting", "loss_mixture")


def score_columns(
    names: Sequence[Score],
    features: Any,
    labels: NDArray[np.int64],
    judged: Judgements,
    epochs: int,
    seed: int = 0,
    progress: Progress | None = None,
    steps: Steps | None = None,
) -> dict[str, NDArray[Any]]:
    """Scores [N] by name, in the order of `names`.

    Args:
        names: which.
        features: [N, D], read in blocks.
        labels: [N] int64, observed.
        judged: their judgements, whose neighbours, votes and probabilities are used.
        epochs: of the training that is watched.
        seed: of that training.
        progress: called as the work goes on.
        steps: keeps what is computed.
    """
    classes = judged.probabilities.shape[1]
    index = judged.index
    tell = progress or (lambda what, share: None)
    keep = steps or Steps()

    def watch() -> dict[str, NDArray[Any]]:
        found = watched_scores(
            features,
            labels,
            classes,
            epochs=epochs,
            seed=seed,
            progress=lambda done, total: tell("watching a training", done / total),
        )
        return {name: np.asarray(found[name]) for name in WATCHED}

    makers: dict[str, Callable[[], NDArray[Any]]] = {
        "wann": lambda: label_margin(wann_votes(index, labels, classes), labels),
        "simifeat": lambda: simifeat(
            neighbour_votes(index[:, :10], labels, classes), labels, "vote"
        )[0],
        "confident_learning": lambda: ~confident_issues(judged.probabilities, labels),
        "class_density": lambda: density_log_odds(features, labels, classes),
    }
    watched = keep("watched", watch) if set(names) & set(WATCHED) else {}
    return {name: watched[name] if name in watched else makers[name]() for name in names}

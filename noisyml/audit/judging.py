"""Judgement of every label: one probability that it is wrong, a suggestion, and a noise rate.

Two views see each row without its label: the votes of its nearest rows, and a logistic regression
on the other folds. A noise channel (`noisyml.audit.scores.channel`) weighs them, learns how classes
are mistaken for each other, and gives each row the probability of every class. Then both views are
fitted once more with these probabilities in place of labels, and the channel once more with them.
The second round ranks better, but its views have heard of every label by way of the first. A third
pair of views (`noisyml.audit.scores.crossed`) learns from judgements too, and has not. The order is
that of all; noise rate, confusion and the level of probabilities are those of the crossed views.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from noisyml.audit.scores.channel import (
    CHOSEN_ON,
    Channel,
    counted,
    fit_channel,
    fit_sources,
)
from noisyml.audit.scores.crossed import FEWEST, crossed_views, log_sources, parts_of
from noisyml.audit.scores.density import class_cosines
from noisyml.audit.scores.folds import (
    chosen_strength,
    out_of_fold_probabilities,
    projected_rows,
    stratified_folds,
)
from noisyml.audit.scores.labels import label_margin, own_share, ranks
from noisyml.audit.scores.neighbours import BLOCK
from noisyml.audit.scores.surest import least_share, surest_of_sources
from noisyml.audit.steps import Arrays, Steps
from noisyml.checks import Count, Ge, Seed, checked
from noisyml.errors import UserError
from noisyml.similarity.approximate.search import approximate_topk
from noisyml.similarity.search import self_topk

#: Called with what is done and a share in [0, 1].
Progress = Callable[[str, float], None]

#: How neighbours are looked for.
Search = Literal["auto", "exact", "approximate"]
#: Rows up to which all are compared with all; lists that each row looks into beyond, rows of each
#: that its centroid is learnt from, and rows whose neighbours are then found exactly too.
EXACT_UP_TO, PROBES, LEARNT_FROM, RECALL_ON = 100_000, 8, 50, 200


@dataclass(frozen=True)
class Interval:
    """An estimate with a 95 % interval that says how far other rows would have moved it."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Judgements:
    """Judgements of N labels among C classes.

    Attributes:
        p_wrong: probability that each label is wrong [N] float64.
        suggested: the likeliest other class [N] int64.
        p_suggested: its probability [N] float64.
        posterior: of every class given the row and its label [N, C] float32.
        transition: share of the rows of each true class (first axis) that carry each label [C, C].
        noise_rate: share of wrong labels.
        confusion: for each pair of true class and label how many rows, ``[C, C]`` and the ends of
            its interval ``[2, C, C]``.
        votes: shares of the neighbours' votes [N, C], of the given labels.
        probabilities: out of fold [N, C], of the given labels.
        index: neighbours [N, k].
        similarity: theirs [N, k], cosine.
        recall: share of the true nearest rows that the search found.
        columns: further scores [N] by name.
    """

    p_wrong: NDArray[np.float64]
    suggested: NDArray[np.int64]
    p_suggested: NDArray[np.float64]
    posterior: NDArray[np.float32]
    transition: NDArray[np.float64]
    noise_rate: Interval
    confusion: tuple[NDArray[np.float64], NDArray[np.float64]]
    votes: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    index: NDArray[np.int64]
    similarity: NDArray[np.float32]
    recall: float
    columns: dict[str, NDArray[Any]] = field(default_factory=dict)


@checked
def judge_labels(
    features: Any,
    labels: NDArray[Any],
    num_classes: Annotated[int, Ge(2)],
    *,
    neighbours: Count = 30,
    folds: Count = 10,
    rounds: Count = 2,
    known: NDArray[Any] | None = None,
    seed: Seed = 0,
    replicates: Count = 100,
    progress: Progress | None = None,
    steps: Steps | None = None,
    probabilities: NDArray[Any] | None = None,
    search: Search = "auto",
) -> Judgements:
    """Judge every label of a data set by the features of its rows.

    Args:
        features: [N, D], read in blocks.
        labels: [N] int64 in ``0 .. C - 1``, observed.
        num_classes: C, at least 2.
        neighbours: votes of each row, at most N - 1 are used.
        folds: of the out-of-fold probabilities; fewer where there are fewer rows.
        rounds: fits of both views; from the second one on with the probabilities of the one before.
            With more than one, and `FEWEST` rows, crossed views tell rate and level; else the first
            round does, which is biased where features explain a part of the errors.
        known: true classes [N] int64 of rows that somebody looked at, -1 for others; they vote and
            teach with that class from the first round on.
        seed: of folds and draws.
        replicates: bootstrap samples behind the intervals.
        progress: called as the work goes on.
        steps: keeps what each step computes; None: nothing is kept.
        probabilities: out of fold [N, C], of another classifier, in place of those of the first
            round; None: they are computed.
        search: of the neighbours, see `nearest_rows`.

    Raises:
        UserError: fewer than four rows.
    """
    n = len(labels)
    keep = steps or Steps()
    if n < 4:
        raise UserError(f"{n} rows are too few to judge labels by: four at least are needed.")
    tell = progress or (lambda what, share: None)
    labels = np.asarray(labels, dtype=np.int64)
    k = min(neighbours, n - 1)

    found = nearest_rows(features, k, keep, tell, search, seed)
    index, similarity = found["index"], found["similarity"]
    rows_in_short = projected_rows(features, seed=seed)
    foreign = probabilities
    given = labels if known is None else np.where(known >= 0, known, labels)
    targets = np.zeros((n, num_classes), dtype=np.float32)
    targets[np.arange(n), given] = 1
    strength = chosen_strength(rows_in_short, targets, seed=seed)
    concentration: float | None = None
    marks = np.full(n, -1, dtype=np.int8)
    # Folds of a foreign classifier are not known.
    held = np.zeros(n, dtype=np.int64)
    if foreign is None:
        held = stratified_folds(given, min(folds, n), seed)
    wrong: list[NDArray[np.float64]] = []
    total = np.zeros((n, num_classes), dtype=np.float32)
    for number in range(rounds):
        what = f"round {number + 1} of {rounds}"

        def fit(what: str = what, targets: NDArray[np.float32] = targets) -> Arrays:
            found = out_of_fold_probabilities(
                rows_in_short,
                given,
                num_classes,
                folds=min(folds, n),
                strength=strength,
                targets=targets,
                seed=seed,
                progress=lambda done, of: tell(what, done / of),
            )
            return {"probabilities": found}

        if number == 0 and foreign is not None:
            probabilities = np.asarray(foreign, dtype=np.float32)
        else:
            probabilities = keep(f"round_{number + 1}", fit)["probabilities"]
        votes = mean_of_neighbours(index, targets)
        sources = log_sources(probabilities, votes * k, class_cosines(rows_in_short, targets))
        if number == 0 and n >= FEWEST:
            marks = surest_of_sources(sources, labels, held, known, seed)
        classes, channel, concentration = fit_sources(
            sources, labels, known, concentration, seed, least_share(marks)
        )
        del sources  # with many classes the largest arrays of all
        if number == 0:
            level, first_votes, first_probabilities = classes, votes, probabilities
            first = channel
        targets = channel.posterior
        wrong.append(1 - own_share(targets, labels).astype(np.float64))
        total += targets
    assert concentration is not None
    # With many classes these are large, and what is still needed of them has another name.
    del classes, channel, votes, probabilities, targets, fit
    if rounds > 1 and n >= FEWEST:
        del level, first  # crossed views take their place

        def cross() -> Arrays:
            return crossed_views(
                rows_in_short,
                labels,
                index,
                num_classes,
                known,
                concentration,
                strength,
                seed,
                lambda done, total: tell("crossed views", done / total),
            )

        views = keep("crossed", cross)
        sources = log_sources(views["probabilities"], views["votes"], views["cosines"])
        marks = surest_of_sources(sources, labels, parts_of(labels, seed), known, seed)
        level, first, _ = fit_sources(
            sources, labels, known, concentration, seed, least_share(marks)
        )
        del sources, views
        wrong.insert(0, 1 - own_share(first.posterior, labels).astype(np.float64))
        total += first.posterior
    rows = np.arange(n)
    p_wrong = combined(wrong)
    if known is not None:
        p_wrong = np.where(known >= 0, (known != labels).astype(np.float64), p_wrong)
    total[rows, labels] = 0
    suggested = total.argmax(axis=1)
    total /= np.maximum(total.sum(axis=1, keepdims=True), 1e-12)
    likely = total[rows, suggested]
    total *= p_wrong[:, None].astype(np.float32)
    total[rows, labels] = 1 - p_wrong
    rate, confusion = _intervals(
        level, labels, first, known, concentration, marks, replicates, seed, tell
    )
    return Judgements(
        p_wrong=p_wrong,
        suggested=suggested,
        p_suggested=p_wrong * likely,
        posterior=total,
        transition=first.transition,
        noise_rate=rate,
        confusion=confusion,
        votes=first_votes,
        probabilities=first_probabilities,
        index=index,
        similarity=similarity,
        recall=float(found["recall"]),
        columns={
            "knn_margin": label_margin(first_votes, labels),
            "knn_agreement": own_share(first_votes, labels),
            "self_confidence": own_share(first_probabilities, labels),
            "normalised_margin": (label_margin(first_probabilities, labels) + 1) / 2,
        },
    )


def combined(rounds: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """One probability [N] from those of several rounds, in the order of the mean of their log-odds.

    A logistic curve (Platt, 1999) brings the mean log-odds to the level of the first round: the sum
    of the probabilities stays that of the first.

    Args:
        rounds: probabilities [N], the first one of the level that is wanted.

    Example:
        >>> combined([np.array([0.1, 0.9, 0.4])]).round(6).tolist()
        [0.1, 0.9, 0.4]
    """
    clipped = [p.clip(1e-7, 1 - 1e-7) for p in rounds]
    score = np.mean([np.log(p / (1 - p)) for p in clipped], axis=0)
    aim = clipped[0]

    def value(line: NDArray[Any]) -> tuple[float, NDArray[np.float64]]:
        z = line[0] * score + line[1]
        error = expit(z) - aim
        return float((np.logaddexp(0, z) - aim * z).mean()), np.array(
            [(error * score).mean(), error.mean()]
        )

    found = minimize(
        value,
        np.array([1.0, 0.0]),
        jac=True,
        method="L-BFGS-B",
        bounds=[(1e-3, None), (None, None)],
        options={"ftol": 1e-12, "gtol": 1e-9},
    )
    return np.asarray(expit(found.x[0] * score + found.x[1]))


def mean_rank_of_margins(
    votes: NDArray[Any], probabilities: NDArray[Any], labels: NDArray[Any]
) -> NDArray[np.float64]:
    """Mean of the ranks of two margins [N] in [0, 1], larger for labels believed right.

    Args:
        votes: shares of the neighbours' votes [N, C].
        probabilities: out of fold [N, C].
        labels: [N] int64, observed.
    """
    return (ranks(label_margin(votes, labels)) + ranks(label_margin(probabilities, labels))) / 2


def nearest_rows(
    features: Any, k: int, keep: Steps, tell: Progress, search: Search = "auto", seed: int = 0
) -> Arrays:
    """The k nearest rows of each: ``index`` and ``similarity`` (cosine) [N, k], and ``recall``.

    Args:
        features: [N, D], read in blocks.
        k: at most N - 1.
        keep: keeps what is found.
        tell: called as the search goes on.
        search: ``exact``, which takes a time that grows with the square of N; ``approximate``, by
            inverted lists; ``auto``: exact up to `EXACT_UP_TO` rows.
        seed: of the lists.
    """
    n = len(features)
    exact = search == "exact" or (search == "auto" and n <= EXACT_UP_TO)

    def report(done: int, total: int) -> None:
        tell("neighbours", done / max(total, 1))

    def find() -> Arrays:
        if exact:
            tell("neighbours", 0.0)
            done = self_topk(features, k, precision="fast", progress=report, keep_in=keep.folder)
            index, cosine = done.index.cpu().numpy(), done.scores.cpu().numpy()
            recall = 1.0
        else:
            tell("lists for neighbours", 0.0)
            lists = max(1, min(round(n**0.5), n // 40))
            near = approximate_topk(
                features,
                features,
                k,
                exclude=np.arange(n),
                index="ivf",
                n_lists=lists,
                n_probes=min(PROBES, lists),
                train_size=LEARNT_FROM * lists,
                recall_sample=RECALL_ON,
                seed=seed,
                device="cpu",
                backend="torch",
                progress=report,
                keep_in=keep.folder,
            )
            index, cosine, recall = near.index.numpy(), near.scores.numpy(), near.recall
            # A row of which too few were found votes once more with the nearest of them.
            lacking = index < 0
            index = np.where(lacking, index[:, :1].clip(min=0), index)
            cosine = np.where(lacking, cosine[:, :1].clip(min=-1), cosine)
        return {
            "index": index,
            "similarity": cosine.astype(np.float32, copy=False),
            "recall": np.asarray(recall),
        }

    return keep("neighbours", find)


def mean_of_neighbours(index: NDArray[Any], targets: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean of the targets [N, C] of each row's neighbours [N, k]."""
    found = np.empty_like(targets)
    step = max(1, BLOCK // (index.shape[1] * targets.shape[1]))
    for start in range(0, len(index), step):
        found[start : start + step] = targets[index[start : start + step]].mean(axis=1)
    return found


def _intervals(
    classes: NDArray[Any],
    labels: NDArray[Any],
    channel: Channel,
    known: NDArray[Any] | None,
    concentration: float,
    marks: NDArray[np.int8],
    replicates: int,
    seed: int,
    tell: Progress,
) -> tuple[Interval, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Noise rate and confusion with bootstrap intervals, on `CHOSEN_ON` rows at most."""
    n, count = classes.shape
    rng = np.random.default_rng(seed)
    rows = np.arange(n) if n <= CHOSEN_ON else np.sort(rng.choice(n, CHOSEN_ON, replace=False))
    q, given = classes[rows], labels[rows]
    told, surest = None if known is None else known[rows], marks[rows]
    rates, tables = np.empty(replicates), np.empty((replicates, count, count))
    for replicate in range(replicates):
        weights = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows))).astype(float)
        floor = least_share(surest, weights)
        drawn = fit_channel(q, given, 8, weights, told, concentration, floor=floor)
        table = counted(drawn.posterior, given, weights)
        tables[replicate] = table
        rates[replicate] = 1 - table.trace() / table.sum()
        tell("intervals", (replicate + 1) / replicates)
    whole = counted(channel.posterior, labels)
    value = 1 - whole.trace() / whole.sum()
    # A sample of the rows varies more than all of them do.
    shrink = np.sqrt(len(rows) / n)
    low, high = (np.quantile(rates, [0.025, 0.975]) - rates.mean()) * shrink + value
    scale = n / len(rows)
    ends = np.quantile(tables, [0.025, 0.975], axis=0)
    ends = whole + (ends - tables.mean(axis=0)) * scale * shrink
    return Interval(float(value), float(max(low, 0.0)), float(min(high, 1.0))), (
        whole,
        np.maximum(ends, 0.0),
    )

"""Images and their captions: each pair is judged by the features of both sides.

Three scores say whether a caption fits its image: how near it lies to the captions of the images
beside it, how near the image lies to the images of the captions beside it, and how near it lies to
the caption that a linear map, fitted on other folds, expects of the image. The first two are those
of Zhang et al., "LEMoN: Label Error Detection using Multimodal Neighbors" (arXiv 2407.18941), with
the mean of the neighbours in place of a sum of distances. What a wrong pair looks like is known:
captions exchanged at random are wrong pairs. A logistic regression tells them from the given ones,
and the share of given pairs that look like them is the noise rate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from noisyml.audit.judging import Interval, Progress, Search, nearest_rows
from noisyml.audit.kinds.base import Kind, Verdict
from noisyml.audit.scores.folds import BLOCK, principal_projection, stratified_folds, unit_rows
from noisyml.audit.steps import Arrays, Steps

if TYPE_CHECKING:
    from noisyml.audit.report import AuditSettings
    from noisyml.audit.rows import Rows

#: Columns of the features of captions, and of images in the linear map.
TEXT_FEATURES, MAPPED = 256, 256
#: Penalty of the linear map, and rows it is fitted on at most.
RIDGE, MAP_ROWS = 10.0, 50_000
#: Neighbours whose captions are compared to find the one that is suggested.
SUGGESTED_FROM = 10


def caption_features(captions: NDArray[Any], seed: int = 0) -> NDArray[np.float32]:
    """Features of texts [N, d] by the words and pairs of words in them, of length 1.

    Counts weighted by rarity (TF-IDF) on their principal directions (latent semantic analysis).

    Args:
        captions: N texts.
        seed: of the decomposition.
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    counts = TfidfVectorizer(
        sublinear_tf=True, ngram_range=(1, 2), min_df=1, max_features=50_000,
        token_pattern=r"(?u)\S+", dtype=np.float32,
    ).fit_transform(captions.tolist())  # fmt: skip
    width = min(TEXT_FEATURES, counts.shape[1] - 1, counts.shape[0] - 1)
    if width < 2:
        return unit_rows(counts.toarray())
    return unit_rows(TruncatedSVD(width, random_state=seed).fit_transform(counts))


def exchanged(captions: NDArray[Any], seed: int = 0) -> NDArray[np.int64]:
    """For each row another one whose caption is a different text [N] int64, at random.

    A row keeps its own number where no such row was found in some draws.
    """
    rng = np.random.default_rng(seed)
    n = len(captions)
    found = rng.permutation(n)
    for _ in range(20):
        same = np.flatnonzero(captions[found] == captions)
        if not len(same):
            break
        found[same] = rng.integers(0, n, len(same))
    same = captions[found] == captions
    found[same] = np.flatnonzero(same)
    return found


def pair_scores(
    images: NDArray[np.float32],
    texts: NDArray[np.float32],
    image_index: NDArray[np.int64],
    text_index: NDArray[np.int64],
    other: NDArray[np.int64],
    folds: int,
    weights: NDArray[np.float64],
    seed: int = 0,
) -> NDArray[np.float64]:
    """Scores of the given pairs and of exchanged ones [2, N, 3], larger where both sides fit.

    Args:
        images: features [N, d] of length 1.
        texts: features of the captions [N, e] of length 1.
        image_index: neighbours of each image [N, k].
        text_index: neighbours of each caption [N, k].
        other: row whose caption each row is given in the exchange [N].
        folds: of the linear map.
        weights: trust in each row as a neighbour and a teacher [N].
        seed: of the folds.
    """
    n = len(images)
    expected = np.empty((n, texts.shape[1]), dtype=np.float32)
    fold = stratified_folds(np.zeros(n, dtype=np.int64), folds, seed)
    rng = np.random.default_rng(seed)
    for number in range(folds):
        seen = np.flatnonzero(fold != number)
        if len(seen) > MAP_ROWS:
            seen = np.sort(rng.choice(seen, MAP_ROWS, replace=False))
        x, w = images[seen].astype(np.float64), weights[seen][:, None]
        square = (x * w).T @ x
        square[np.diag_indices_from(square)] += RIDGE * np.trace(square) / len(square) / 100
        matrix = np.linalg.solve(square, (x * w).T @ texts[seen].astype(np.float64))
        out = np.flatnonzero(fold == number)
        expected[out] = images[out] @ matrix.astype(np.float32)
    expected = unit_rows(expected)
    scores = np.empty((2, n, 3))
    light = weights.astype(np.float32)
    step = max(1, BLOCK // image_index.shape[1])
    for start in range(0, n, step):
        part = slice(start, start + step)
        own = np.arange(n)[part]
        near = image_index[part]
        said = unit_rows(np.einsum("nk,nkd->nd", light[near], texts[near]))
        for line, caption in ((0, own), (1, other[part])):
            text = texts[caption]
            beside = text_index[caption]
            # A row is no witness of itself, also where its caption was given away.
            trust = np.where(beside == own[:, None], 0, light[beside])
            shown = unit_rows(np.einsum("nk,nkd->nd", trust, images[beside]))
            scores[line, part, 0] = (said * text).sum(axis=1)
            scores[line, part, 1] = (shown * images[part]).sum(axis=1)
            scores[line, part, 2] = (expected[part] * text).sum(axis=1)
    return scores


def share_of_wrong(given: NDArray[np.float64], wrong: NDArray[np.float64]) -> float:
    """Share of a mixture that its known component explains.

    Below any bound a share s of the known component and g of the mixture lies; the mixture's share
    of it is at most ``g / s``. The smallest of these upper bounds, each with a standard error
    added, over bounds that hold a tenth to nine tenths of the known component.

    Args:
        given: scores of the mixture [N].
        wrong: scores of the known component [M].

    Example:
        >>> low, high = np.linspace(0, 1, 500), np.linspace(2, 3, 1500)
        >>> round(share_of_wrong(np.concatenate([low, high]), np.linspace(0, 1, 800)), 2)
        0.26
    """
    best = 1.0
    for share in np.linspace(0.1, 0.9, 17):
        bound = np.quantile(wrong, share)
        mass = float((given <= bound).mean())
        error = np.sqrt(max(mass * (1 - mass), 1e-12) / len(given))
        best = min(best, (mass + error) / share)
    return float(best)


def judge_pairs(
    images: Any,
    captions: NDArray[Any],
    *,
    neighbours: int = 30,
    folds: int = 10,
    rounds: int = 2,
    known: NDArray[Any] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    steps: Steps | None = None,
    search: Search = "auto",
) -> dict[str, Any]:
    """Judge pairs of image and caption.

    Args:
        images: features [N, D], read in blocks.
        captions: N texts.
        neighbours, folds, rounds, seed, progress, steps, search: see `judge_labels`.
        known: 1 where a pair is known to be right, 0 where it is wrong, -1 where nobody looked.

    Returns:
        ``p_wrong`` [N]; ``index`` and ``similarity`` [N, k] of the images; ``scores`` [N, 3];
        ``suggested``: rows whose caption is suggested [N]; ``p_suggested`` [N]; ``rates``: noise
        rates of bootstrap samples.
    """
    keep = steps or Steps()
    tell = progress or (lambda what, share: None)
    n = len(captions)
    k = min(neighbours, n - 1)
    found = nearest_rows(images, k, keep, tell, search, seed)

    def read() -> Arrays:
        tell("captions", 0.0)
        texts = caption_features(captions, seed)
        near = nearest_rows(texts, k, Steps(), tell, search, seed)
        return {"texts": texts, "text_index": near["index"]}

    read_texts = keep("captions", read)
    texts, text_index = read_texts["texts"], read_texts["text_index"]
    projection = principal_projection(images, MAPPED, seed=seed)
    parts = [projection(images[at : at + BLOCK]).numpy() for at in range(0, n, BLOCK)]
    pictures = unit_rows(np.concatenate(parts))
    other = exchanged(captions, seed)
    exchanged_rows = captions[other] != captions
    trust = np.ones(n)
    for number in range(rounds):
        if known is not None:
            trust = np.where(known >= 0, known, trust)
        scores = pair_scores(
            pictures, texts, found["index"], text_index, other, min(folds, n), trust, seed
        )
        score, fit, curve, rate = _fitted(scores, exchanged_rows, trust)
        p_wrong = curve(score)
        trust = 1 - p_wrong
        tell(f"round {number + 1} of {rounds}", 1.0)
    rng = np.random.default_rng(seed)
    wrong = fit(scores[1][exchanged_rows])
    rates = [
        share_of_wrong(score[rng.integers(0, n, n)], wrong[rng.integers(0, len(wrong), len(wrong))])
        for _ in range(50)
    ]
    suggested = _suggested(found["index"][:, :SUGGESTED_FROM], texts, trust)
    told = pair_scores(
        pictures, texts, found["index"], text_index, suggested, min(folds, n), trust, seed
    )
    fits = 1 - curve(fit(told[1]))
    if known is not None:
        p_wrong = np.where(known >= 0, 1.0 - known, p_wrong)
    return {
        "p_wrong": p_wrong,
        **found,
        "scores": scores[0],
        "suggested": suggested,
        "p_suggested": p_wrong * fits,
        "rate": rate,
        "rates": np.asarray(rates) - np.mean(rates) + rate,
    }


def _fitted(
    scores: NDArray[np.float64], exchanged_rows: NDArray[np.bool_], trust: NDArray[np.float64]
) -> tuple[NDArray[np.float64], Callable[..., Any], Callable[..., Any], float]:
    """One score [N], the function of three scores behind it, the curve to p_wrong, and the rate."""
    given, wrong = scores[0], scores[1][exchanged_rows]
    middle, scale = given.mean(axis=0), given.std(axis=0) + 1e-9
    rows = (np.concatenate([given, wrong]) - middle) / scale
    side = np.r_[np.ones(len(given)), np.zeros(len(wrong))]
    # Rows that are wrong by the round before teach little of what right ones look like.
    weight = np.r_[np.maximum(trust, 1e-3), np.ones(len(wrong))]
    power = LogisticRegression().fit(rows, side, sample_weight=weight).coef_[0].clip(min=0)
    if not power.any():
        # Given pairs fit no better than chance in any way; the order is that of the mean.
        power = np.ones_like(power)

    def fit(three: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(((three - middle) / scale) @ power)

    score, null = fit(given), fit(wrong)
    rate = share_of_wrong(score, null)
    shape = IsotonicRegression(increasing=False, out_of_bounds="clip")
    shape.fit(
        np.r_[score, null],
        np.r_[np.zeros(len(score)), np.ones(len(null))],
        sample_weight=np.r_[np.full(len(score), 1 / len(score)), np.full(len(null), 1 / len(null))],
    )

    def curve(values: NDArray[np.float64]) -> NDArray[np.float64]:
        share = np.clip(shape.predict(values), 0, 1 - 1e-6)
        likely = np.minimum(rate * share / (1 - share), 1.0)
        # The curve has steps; within one the score tells rows apart.
        return np.asarray(np.clip(likely - 1e-6 * np.tanh(values), 1e-6, 1 - 1e-6))

    return score, fit, curve, rate


def _suggested(
    index: NDArray[np.int64], texts: NDArray[np.float32], trust: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Of each image's neighbours the one whose trusted caption is nearest to those of all [N]."""
    found = np.empty(len(index), dtype=np.int64)
    step = max(1, BLOCK // index.shape[1])
    for start in range(0, len(index), step):
        near = index[start : start + step]
        light = trust[near].astype(np.float32) + 1e-6
        said = unit_rows(np.einsum("nk,nkd->nd", light, texts[near]))
        fit = np.einsum("nd,nkd->nk", said, texts[near]) * light
        found[start : start + step] = near[np.arange(len(near)), fit.argmax(axis=1)]
    return found


class Captions(Kind):
    """Images with a caption each."""

    column: ClassVar[str] = "caption"
    scores: ClassVar[tuple[str, ...]] = ("captions_beside", "images_beside", "expected_caption")

    def judge(
        self,
        rows: Rows,
        settings: AuditSettings,
        known: NDArray[Any] | None = None,
        progress: Progress | None = None,
        steps: Steps | None = None,
        rounds: int | None = None,
        probabilities: NDArray[Any] | None = None,
    ) -> Verdict:
        """See `Kind.judge`; the judging is `judge_pairs`."""
        right = None
        if known is not None:
            same = np.asarray([new == old for new, old in zip(known, rows.labels, strict=True)])
            looked = np.asarray([text is not None for text in known])
            right = np.where(looked, same.astype(np.int64), -1)
        found = judge_pairs(
            rows.features,
            rows.labels,
            neighbours=settings.neighbours,
            folds=settings.folds if rounds is None else min(settings.folds, 5),
            rounds=rounds or settings.rounds,
            known=right,
            seed=settings.seed,
            progress=progress,
            steps=steps,
            search=settings.search,
        )
        suggested = np.asarray(rows.labels, dtype=object)[found["suggested"]]
        p_suggested = np.asarray(found["p_suggested"])
        if known is not None:
            suggested = np.where(looked & ~same, known, suggested)
            p_suggested = np.where(looked, np.where(same, 0.0, 1.0), p_suggested)
        low, high = np.quantile(found["rates"], [0.025, 0.975])
        p_wrong = np.asarray(found["p_wrong"])

        def decide(
            relabel_above: float | None, drop_above: float | None
        ) -> tuple[NDArray[Any], NDArray[Any]]:
            # A caption that another image has is a proposal, which no threshold takes.
            seen = p_suggested == 1.0
            drop = np.zeros(len(rows), bool) if drop_above is None else p_wrong >= drop_above
            decision = np.where(seen, "relabel", np.where(drop, "drop", "keep"))
            return np.where(seen, suggested, rows.labels), decision

        return Verdict(
            p_wrong=p_wrong,
            suggested=suggested,
            p_suggested=p_suggested,
            noise_rate=Interval(found["rate"], float(max(low, 0)), float(min(high, 1))),
            index=found["index"],
            similarity=found["similarity"],
            columns={
                "captions_beside": found["scores"][:, 0],
                "images_beside": found["scores"][:, 1],
                "expected_caption": found["scores"][:, 2],
            },
            reasons=_reasons(rows, p_wrong, found["scores"], found["index"]),
            ranking=np.argsort(-p_wrong, kind="stable"),
            decide=decide,
            facts={"neighbours_found": float(found["recall"])},
        )

    def nobody_looked(self, rows: Rows) -> NDArray[Any]:
        """None [N]."""
        return np.full(len(rows), None, dtype=object)

    def read(self, rows: Rows, text: str, where: str) -> str:
        """The text itself."""
        return text

    def plant(self, rows: Rows, share: float, seed: int) -> tuple[Rows, NDArray[np.int64]]:
        """That share of the rows gets the caption of another row."""
        rng = np.random.default_rng(seed)
        chosen = rng.choice(len(rows), max(1, round(share * len(rows))), replace=False)
        captions = np.asarray(rows.labels, dtype=object)
        other = exchanged(captions, seed)
        planted = captions.copy()
        planted[chosen] = captions[other[chosen]]
        return replace(rows, labels=planted), np.sort(chosen[planted[chosen] != captions[chosen]])


def _reasons(
    rows: Rows, p_wrong: NDArray[Any], scores: NDArray[Any], index: NDArray[Any]
) -> list[list[str]]:
    """Reasons for doubt about each pair in words."""
    told: list[list[str]] = [[] for _ in range(len(rows))]
    middle = np.median(scores, axis=0)
    for row in np.flatnonzero(p_wrong >= 0.2).tolist():
        trusted = index[row][p_wrong[index[row]] < 0.5]
        if len(trusted):
            told[row].append(f"the nearest image is called: {rows.labels[trusted[0]]}")
        told[row].append(
            f"captions of the nearest images fit {scores[row, 0]:.2f} (half of all rows "
            f"{middle[0]:.2f} or more), images of the nearest captions {scores[row, 1]:.2f} "
            f"({middle[1]:.2f})"
        )
    return told

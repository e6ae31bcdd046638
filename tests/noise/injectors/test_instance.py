"""Part-dependent, PMD, classification-based and open-set noise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from noisyml.errors import UserError
from noisyml.noise import (
    ClassificationBased,
    OpenSet,
    PartDependent,
    PolynomialMarginDiminishing,
    SampleState,
)
from noisyml.noise.base import Injector
from noisyml.noise.probabilities import flip_probabilities

N, C = 4000, 5
RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, C, N)
PIXELS = RNG.integers(0, 256, (N, 12)).astype(np.uint8)
ETA = softmax(2 * RNG.normal(size=(N, C)), axis=1)
KEYS = [f"{i}.png" for i in range(N)]


def test_flip_probabilities_are_distributions() -> None:
    q = np.linspace(0, 1, N)
    rows = flip_probabilities(RNG.normal(size=(N, C)), LABELS, q)
    np.testing.assert_allclose(rows.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(rows[np.arange(N), LABELS], 1 - q, atol=1e-12)


@pytest.mark.parametrize("variant", ["part_dependent", "cifar_n"])
@pytest.mark.parametrize("seed", [0, 1])
def test_part_dependent_rate(variant: str, seed: int) -> None:
    manifest = PartDependent(rate=0.4, variant=variant, seed=seed).inject(
        LABELS, C, features=PIXELS
    )
    # Flip rates average to r (the cut at 0 and 1 is four deviations away), then a coin.
    assert abs(manifest.actual_rate - 0.4) < 4 * np.sqrt(0.4 * 0.6 / N) + 0.001
    assert manifest.params["pixel_factor"] == 1.0


def test_raw_pixels_give_each_image_one_target_and_small_inputs_a_soft_one() -> None:
    """At 0..255 the softmax is one-hot: equal images of a class share their wrong label."""
    same = np.repeat(PIXELS[:1], N, axis=0)
    labels = np.zeros(N, dtype=int)
    raw = PartDependent(rate=0.5).inject(labels, C, features=same)
    assert len(np.unique(raw.observed)) == 2
    soft = PartDependent(rate=0.5, pixel_factor=1 / 2550).inject(labels, C, features=same)
    assert len(np.unique(soft.observed)) == C


@pytest.mark.parametrize(
    ("injector", "features"),
    [
        (PartDependent(rate=0.4), PIXELS),
        (PartDependent(rate=0.4, variant="cifar_n"), PIXELS),
        (PolynomialMarginDiminishing(type=2), ETA),
        (ClassificationBased(rate=0.3), ETA),
        (OpenSet(rate=0.4, source_size=5000), None),
        (OpenSet(rate=0.4, source_size=5000, include_true=False), None),
    ],
    ids=str,
)
def test_order_of_the_data_is_irrelevant(injector: Injector, features: np.ndarray | None) -> None:
    shuffle = np.random.default_rng(1).permutation(N)
    straight = injector.inject(LABELS, C, keys=KEYS, features=features)
    shuffled = injector.inject(
        LABELS[shuffle],
        C,
        keys=[KEYS[i] for i in shuffle],
        features=None if features is None else features[shuffle],
    )
    np.testing.assert_array_equal(straight.observed[shuffle], shuffled.observed)
    np.testing.assert_array_equal(straight.changed[shuffle], shuffled.changed)
    if straight.source_index is not None:
        np.testing.assert_array_equal(straight.source_index[shuffle], shuffled.source_index)


def test_pmd_chooses_between_the_two_likeliest_classes() -> None:
    top = np.argsort(-ETA, axis=1)[:, :2]
    for kind in (1, 2, 3):
        manifest = PolynomialMarginDiminishing(type=kind, factor=1.3).inject(
            LABELS, C, features=ETA
        )
        assert (manifest.observed[:, None] == top).any(axis=1).all()
        assert manifest.nominal_rate is None
        assert manifest.details["network_disagreement"] == (top[:, 0] != LABELS).mean()
    sure = np.eye(C)[LABELS]
    assert PolynomialMarginDiminishing(factor=1.0).inject(LABELS, C, features=sure).actual_rate == 0


@pytest.mark.parametrize("rate", [0.1, 0.29, 0.3, 1.0])
def test_classification_based_flips_exactly_the_most_ambiguous(rate: float) -> None:
    manifest = ClassificationBased(rate=rate).inject(LABELS[:100], C, features=ETA[:100])
    assert manifest.changed.sum() == round(rate * 100)
    wrong = ETA[:100].copy()
    wrong[np.arange(100), LABELS[:100]] = -1
    np.testing.assert_array_equal(
        manifest.observed[manifest.changed], wrong.argmax(axis=1)[manifest.changed]
    )
    confusion = wrong.max(axis=1)
    if rate < 1:
        assert confusion[manifest.changed].min() >= confusion[~manifest.changed].max()


@pytest.mark.parametrize("include_true", [True, False])
def test_open_set_counts_and_states(include_true: bool) -> None:
    manifest = OpenSet(
        rate=0.3, open_share=0.25, source_size=400, include_true=include_true, seed=2
    ).inject(LABELS, C)
    opened = manifest.state == SampleState.OPEN
    assert opened.sum() == 300
    assert (manifest.observed[opened] == LABELS[opened]).all(), "open-set samples keep their label"
    assert (manifest.clean[opened] == -1).all()
    assert manifest.changed[opened].all()
    assert len(np.unique(manifest.source_index[opened])) == 300, "no image is used twice"
    assert manifest.source_index.max() < 400
    assert manifest.truth_known
    closed = (manifest.state == SampleState.CLOSED).sum()
    assert closed == 900 if not include_true else abs(closed - 720) < 4 * np.sqrt(900 * 0.16)
    assert manifest.actual_rate == pytest.approx((300 + closed) / N)
    manifest.check_split(LABELS)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_open_share_limits(share: float) -> None:
    manifest = OpenSet(rate=0.5, open_share=share, source_size=2000).inject(LABELS, C)
    assert manifest.details["open"] == share * 2000


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: PartDependent(rate=0.4).inject(LABELS, C), "needs pixels"),
        (lambda: PartDependent(rate=0.4, norm_std=0), "norm_std"),
        (lambda: PartDependent(rate=0.4, pixel_factor=0), "pixel_factor"),
        (
            lambda: PartDependent(rate=0.4, variant="x"),
            "variant=x must be part_dependent or cifar_n",
        ),
        (
            lambda: PartDependent(rate=0.4, variant="cifar_n", count="legacy", norm_std=0.2),
            "noise.norm_std=0.1",
        ),
        (lambda: PartDependent(rate=0.4).inject([0], 1, features=[[1]]), "two classes"),
        (lambda: PolynomialMarginDiminishing(type=4), "type=4 must be 1, 2 or 3"),
        (
            lambda: PolynomialMarginDiminishing(factor=0.5),
            "factor=0.5 must be a number of at least 1",
        ),
        (
            lambda: PolynomialMarginDiminishing().inject(LABELS, C, features=ETA * 2),
            "not class probabilities",
        ),
        (
            lambda: ClassificationBased(rate=0.1).inject(LABELS, C, features=ETA[:, :3]),
            "3 columns for 5",
        ),
        (lambda: OpenSet(rate=0.5, source_size=10).inject(LABELS, C), "needs 1000 foreign"),
        (lambda: OpenSet(rate=0.5).inject(LABELS, C), "set noise.source_size"),
        (
            lambda: OpenSet(rate=0.5, open_share=2, source_size=9),
            "open_share=2 must be a number from 0 to 1",
        ),
        (
            lambda: OpenSet(rate=0.5, source_size=9, count="legacy", include_true=False),
            "noise.include_true=true",
        ),
        (
            lambda: OpenSet(rate=0.5, source_size=9, include_true=False).inject([0] * 4, 1),
            "open_share=1",
        ),
    ],
)
def test_mistakes_end_in_a_sentence(make: object, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        make()  # type: ignore[operator]
    assert "\n" not in str(caught.value)


def test_rate_zero_changes_nothing() -> None:
    for injector, features in [
        (PartDependent(rate=0.0), PIXELS),
        (ClassificationBased(rate=0.0), ETA),
        (OpenSet(rate=0.0, source_size=0), None),
    ]:
        manifest = injector.inject(LABELS, C, features=features)
        np.testing.assert_array_equal(manifest.observed, LABELS)
        assert manifest.actual_rate == 0

"""The reference vectors of tests/golden/noise, bit for bit or within their README's tolerance."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from support import paths, vectors

from noisyml.noise import (
    Asymmetric,
    Matrix,
    OpenSet,
    Pair,
    PartDependent,
    PolynomialMarginDiminishing,
    SampleState,
    Symmetric,
)
from noisyml.noise.base import Injector
from noisyml.noise.injectors.instance import pmd_levels
from noisyml.noise.probabilities import part_dependent_probabilities
from noisyml.noise.released import single_label as released
from noisyml.noise.transition import (
    CIFAR100_FINE_TO_COARSE,
    class_map,
    exact_counts,
    map_matrix,
    pair_map,
    preset_matrix,
    symmetric_matrix,
)

GOLDEN = paths.GOLDEN / "noise"
load = functools.partial(vectors.arrays, GOLDEN)


@pytest.mark.parametrize(
    ("key", "matrix"),
    [
        ("symmetric_C10", symmetric_matrix(10, 0.3)),
        ("mnist_asym", map_matrix(10, class_map("mnist", 10), 0.3)),
        ("cifar10_asym", map_matrix(10, class_map("cifar10", 10), 0.3)),
        ("news6_asym", map_matrix(6, class_map("news6", 6), 0.3)),
        ("pairflip_C7", map_matrix(7, pair_map(7), 0.3)),
        ("cifar100_block5_asym", map_matrix(100, class_map("cifar100_block5", 100), 0.3)),
        ("arbitrary_mnist", preset_matrix("arbitrary_mnist")),
        ("arbitrary_cifar10", preset_matrix("arbitrary_cifar10")),
    ],
)
def test_matrices(key: str, matrix: np.ndarray) -> None:
    golden = load("matrices_rate0.3.npz")
    assert golden["rate"] == 0.3
    np.testing.assert_allclose(matrix, golden[key], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("file", "num_classes"),
    [
        ("legacy_multinomial_N2000.npz", 10),
        ("legacy_multinomial_C6.npz", 6),
        ("legacy_multinomial_C100.npz", 100),
    ],
)
def test_legacy_multinomial(file: str, num_classes: int) -> None:
    golden = load(file)
    rate, seed = float(golden["rate"]), int(golden["seed"])
    known: dict[str, Injector] = {
        "symmetric": Symmetric(rate=rate, seed=seed, count="legacy"),
        "pairflip": Pair(rate=rate, seed=seed, count="legacy"),
        "from_matrix": Matrix(matrix=golden["matrix"], seed=seed, count="legacy"),
    }
    results = set(golden) - {"labels", "rate", "seed", "matrix"}
    for key in results:
        if key.startswith("arbitrary_"):
            known[key] = Matrix(preset=key, seed=seed, count="legacy")
        elif key.endswith("_asym"):
            name = key.removesuffix("_asym")
            known[key] = Asymmetric(rate=rate, seed=seed, count="legacy", map=name)
        observed = known[key].inject(golden["labels"], num_classes).observed
        np.testing.assert_array_equal(observed, golden[key], err_msg=key)
    assert len(results) >= 4


def test_fer() -> None:
    golden = load("fer_issue18.npz")
    injector = Symmetric(
        rate=float(golden["rate"]), seed=int(golden["seed"]), count="legacy", legacy="fer"
    )
    np.testing.assert_array_equal(injector.inject(golden["labels"], 7).observed, golden["noisy"])


def test_elr() -> None:
    golden = load("elr_cifar10.npz")
    labels, rate, seed = golden["labels"], float(golden["rate"]), int(golden["seed"])
    noisy, visited = released.elr_symmetric(labels, rate, 10, seed)
    np.testing.assert_array_equal(noisy, golden["symmetric_noise"])
    np.testing.assert_array_equal(visited, golden["symmetric_noise_selected_index"])
    pairs = class_map("cifar10", 10)
    noisy, visited = released.elr_asymmetric(labels, rate, 10, pairs, seed)
    np.testing.assert_array_equal(noisy, golden["asymmetric_noise"])
    np.testing.assert_array_equal(visited, golden["asymmetric_noise_selected_index"])
    assert len(np.unique(visited)) < len(visited), "the re-flip defect visits samples twice"
    for injector, key in [
        (
            Symmetric(rate=rate, seed=seed, count="legacy", legacy="elr", include_true=True),
            "symmetric_noise",
        ),
        (
            Asymmetric(rate=rate, seed=seed, count="legacy", legacy="elr", map="cifar10"),
            "asymmetric_noise",
        ),
    ]:
        np.testing.assert_array_equal(injector.inject(labels, 10).observed, golden[key])


def test_selcl() -> None:
    golden = load("selcl_cifar10.npz")
    labels, rate, seed = golden["labels"], float(golden["rate"]), int(golden["seed"])
    symmetric = Symmetric(
        rate=rate, seed=seed, count="legacy", legacy="selcl", include_true=True
    ).inject(labels, 10)
    np.testing.assert_array_equal(symmetric.observed, golden["random_in_noise"])
    asymmetric = Asymmetric(
        rate=rate, seed=seed, count="legacy", legacy="selcl", map="cifar10"
    ).inject(labels, 10)
    np.testing.assert_array_equal(asymmetric.observed, golden["real_in_noise"])


def test_dividemix() -> None:
    golden = load("dividemix_cifar10_seed123.npz")
    symmetric = Symmetric(
        rate=0.5, seed=123, count="legacy", legacy="dividemix", include_true=True
    ).inject(golden["clean"], 10)
    np.testing.assert_array_equal(symmetric.observed, golden["sym_r0_5"])
    asymmetric = Asymmetric(
        rate=0.4, seed=123, count="legacy", legacy="dividemix", map="cifar10"
    ).inject(golden["clean"], 10)
    np.testing.assert_array_equal(asymmetric.observed, golden["asym_r0_4"])
    # Balanced classes: r (1 - 1/C) of all labels are wrong, and about r / 2.
    assert symmetric.actual_rate == pytest.approx(0.5 * 0.9, abs=0.01)
    assert asymmetric.actual_rate == pytest.approx(0.2, abs=0.01)


def test_evidentialmix() -> None:
    golden = load("evidentialmix_0.30_0.50_cifar100.npz")
    clean = load("dividemix_cifar10_seed123.npz")["clean"]
    prefix = "0.30_0.50_cifar100/"
    noisy, pairs, closed = released.evidentialmix(
        clean.astype(np.int64), 0.3, 0.5, 50_000, 10, seed=123
    )
    np.testing.assert_array_equal(noisy, golden[prefix + "labels"])
    np.testing.assert_array_equal(pairs, golden[prefix + "open"])
    np.testing.assert_array_equal(closed, golden[prefix + "closed"])
    manifest = OpenSet(
        rate=0.3, open_share=0.5, source_size=50_000, count="legacy", seed=123
    ).inject(clean, 10)
    np.testing.assert_array_equal(manifest.observed, golden[prefix + "labels"])
    np.testing.assert_array_equal(manifest.source_index[pairs[:, 0]], pairs[:, 1])
    assert (manifest.state == SampleState.OPEN).sum() == 7500
    # Wrong labels among all samples, as counted in the released file.
    assert (manifest.state == SampleState.CLOSED).mean() == pytest.approx(0.1346, abs=5e-5)


def test_exact_counts() -> None:
    golden = load("exact_counts.npz")
    labels, seed, rate = golden["labels"], int(golden["np_seed"]), float(golden["rate"])
    for case in ("symmetric", "pair", "arbitrary"):
        matrix, wanted = golden[f"{case}/matrix"], golden[f"{case}/exact_counts"]
        np.testing.assert_array_equal(exact_counts(golden["class_counts"], matrix), wanted)
        exact = Matrix(matrix=matrix, count="exact", seed=3).inject(labels, 6)
        np.testing.assert_array_equal(exact.count_matrix(), wanted)
        truncated = Matrix(matrix=matrix, count="legacy", legacy="cleanlab", seed=seed).inject(
            labels, 6
        )
        np.testing.assert_array_equal(truncated.observed, golden[f"{case}/cleanlab_labels_np_seed"])
        np.testing.assert_array_equal(truncated.count_matrix(), golden[f"{case}/cleanlab_counts"])
        assert truncated.actual_rate <= exact.actual_rate
    for injector, case in [
        (Symmetric(rate=rate, count="exact", seed=5), "symmetric"),
        (Pair(rate=rate, count="exact", seed=5), "pair"),
    ]:
        counts = injector.inject(labels, 6).count_matrix()
        np.testing.assert_array_equal(counts, golden[f"{case}/exact_counts"])


def test_part_dependent() -> None:
    golden = load("idn_part_dependent.npz")
    labels, inputs = golden["labels"], golden["x"]
    rows = part_dependent_probabilities(
        inputs, labels, golden["flip_rate"], golden["W"].astype(np.float32)
    )
    np.testing.assert_allclose(rows, golden["instance_probability"], rtol=0, atol=1e-5)
    manifest = PartDependent(
        rate=float(golden["rate"]),
        norm_std=float(golden["norm_std"]),
        seed=int(golden["seed"]),
        count="legacy",
    ).inject(labels, 5, features=inputs)
    np.testing.assert_array_equal(manifest.observed, golden["noisy"])


def test_cifar_n_instance() -> None:
    golden = load("idn_cifar_n_code.npz")
    labels = golden["labels"]
    generator = np.random.RandomState(int(golden["image_seed"]))
    images = generator.randint(0, 256, (len(labels), 32, 32, 3)).astype(np.uint8)
    injector = PartDependent(rate=float(golden["rate"]), variant="cifar_n", count="legacy", seed=0)
    manifest = injector.inject(labels, 10, features=images.reshape(len(labels), -1))
    np.testing.assert_array_equal(manifest.observed, golden["noisy"])


@pytest.mark.parametrize("kind", [1, 2, 3])
def test_pmd(kind: int) -> None:
    golden = load("pmd.npz")
    factor = float(golden[f"type{kind}/factor"])
    _, _, level, _ = pmd_levels(golden["eta"], kind, factor)
    np.testing.assert_allclose(level, golden[f"type{kind}/f"], rtol=0, atol=1e-12)
    manifest = PolynomialMarginDiminishing(
        type=kind, factor=factor, seed=int(golden[f"type{kind}/np_seed"]), count="legacy"
    ).inject(golden["labels"], 10, features=golden["eta"])
    np.testing.assert_array_equal(manifest.observed, golden[f"type{kind}/noisy"])
    assert manifest.nominal_rate is None
    assert manifest.actual_rate == (golden[f"type{kind}/noisy"] != golden["labels"]).mean()


def test_cifar_n_tables() -> None:
    golden = load("cifar_n_tables.npz")
    np.testing.assert_array_equal(CIFAR100_FINE_TO_COARSE, golden["cifar100_fine_to_coarse"])
    np.testing.assert_allclose(
        map_matrix(100, class_map("cifar100_superclass", 100), 0.3),
        golden["cifar100_superclass_asym_rate0.3_derived"],
        rtol=0,
        atol=1e-12,
    )
    blocks = class_map("cifar100_block5", 100)
    coarse = golden["cifar100_fine_to_coarse"]
    assert any(coarse[source] != coarse[target] for source, target in blocks.items())
    # A confusion count, read as noise matrix, gives back its own off-diagonal share.
    counts = golden["cifar10n_worse_label_confusion"]
    clean = np.arange(10).repeat(counts.sum(axis=1))
    twin = Matrix(matrix=counts, normalize=True, count="exact").inject(clean, 10)
    np.testing.assert_array_equal(twin.count_matrix(), counts)
    assert twin.nominal_rate == pytest.approx(0.40208)
    wrong = {
        "cifar10n_aggre_label_confusion": 4505,
        "cifar10n_worse_label_confusion": 20_104,
        "cifar10n_random_label1_confusion": 8617,
        "cifar10n_random_label2_confusion": 9061,
        "cifar10n_random_label3_confusion": 8820,
    }
    for key, number in wrong.items():
        assert golden[key].sum() - np.trace(golden[key]) == number

"""RKD and its baselines: released values and gradients, definitions, the common contract."""

import functools

import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from support import paths, vectors

from noisyml.errors import UserError
from noisyml.losses.distillation.classical import (
    AttentionTransfer,
    DistillationSum,
    Features,
    FitNet,
    HintonDistillation,
    attention_transfer,
    fitnet_loss,
    softened_divergence,
)
from noisyml.losses.distillation.relational import (
    HardDarkRank,
    RKDAngle,
    RKDDistance,
    hard_darkrank,
    rkd_angle,
    rkd_distance,
)
from noisyml.losses.metric_learning.distances import pair_distances
from noisyml.metrics.retrieval import retrieval_metrics

GOLDEN = paths.GOLDEN / "rkd"
#: Cosines of a network held at a time: all of a small batch, or one vertex.
BLOCKS = [2**22, 1]
load = functools.partial(vectors.tensors, GOLDEN)
close = functools.partial(vectors.close, atol=1e-10)


def differentiated(loss, student, *arguments, **settings_):
    """The loss and its gradient at the student."""
    leaf = student.clone().requires_grad_()
    value = loss(leaf, *arguments, **settings_)
    value.backward()
    return value.detach(), leaf.grad


def both(student, teacher, **settings_):
    return rkd_distance(student, teacher) + 2 * rkd_angle(student, teacher, **settings_)


def cosines_by_definition(points, eps=1e-6):
    """Cosines [N, N, N] at the vertex of the first axis, 0 for rows closer than eps."""
    difference = points - points[:, None]
    length = difference.norm(dim=2, keepdim=True)
    direction = difference / torch.where(length > eps, length, torch.inf)
    return direction @ direction.transpose(1, 2)


def angle_by_definition(student, teacher):
    return F.smooth_l1_loss(
        cosines_by_definition(student), cosines_by_definition(teacher), beta=1.0
    )


def points(n, dim, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dim, generator=generator, dtype=dtype)


# -- reference vectors ---------------------------------------------------------------------------

RELATIONS = [
    ("dist", rkd_distance, {}),
    ("angle", rkd_angle, {}),
    ("dark_a2_b3", hard_darkrank, {"alpha": 2, "beta": 3}),
    ("dark_a3_b3", hard_darkrank, {"alpha": 3, "beta": 3}),
    ("dark_a2_b15", hard_darkrank, {"alpha": 2, "beta": 1.5}),
]


@pytest.mark.parametrize("file", ["relation_losses.npz", "relation_losses_wide_student.npz"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("key", "loss", "arguments", "unit"),
    [(*relation, unit) for relation in RELATIONS for unit in (False, True)]
    + [("da", both, {}, False)],
)
def test_released_relation_losses(file, key, loss, arguments, unit, dtype):
    golden = load(file)
    suffix = "_l2norm" if unit else ""

    def of_raw(student, teacher, **kwargs):
        return loss(F.normalize(student, dim=1) if unit else student, teacher, **kwargs)

    value, gradient = differentiated(
        of_raw, golden["student"].to(dtype), golden["teacher"].to(dtype), **arguments
    )
    assert value.dtype == gradient.dtype == dtype
    expected, expected_gradient = golden[f"{key}_loss{suffix}"], golden[f"{key}_grad{suffix}"]
    if dtype == torch.float64:
        close(value, expected)
        close(gradient, expected_gradient)
    else:
        scale = expected_gradient.abs().max().item()
        close(value, expected.float(), rtol=1e-4)
        close(gradient, expected_gradient.float(), rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("file", ["relation_losses.npz", "relation_losses_wide_student.npz"])
def test_means_over_distinct_tuples_and_the_relations_themselves(file):
    golden = load(file)
    student, teacher = golden["student"], golden["teacher"]
    close(
        rkd_distance(student, teacher, tuples="distinct"), golden["derived_dist_loss_offdiag_mean"]
    )
    for block_bytes in BLOCKS:
        close(
            rkd_angle(student, teacher, tuples="distinct", block_bytes=block_bytes),
            golden["derived_angle_loss_distinct_mean"],
        )
    for name, rows in (("student", student), ("teacher", teacher)):
        distance = pair_distances(rows)
        close(distance / distance[distance > 0].mean(), golden[f"{name}_distance"])
        close(cosines_by_definition(rows), golden[f"{name}_angle"])


@pytest.mark.parametrize("block_bytes", BLOCKS)
@pytest.mark.parametrize("case", ["tdup", "sdup", "bdup", "n2", "n3"])
def test_edge_cases(case, block_bytes):
    golden = load("edge_cases.npz")
    student, teacher = golden[f"{case}_student"], golden[f"{case}_teacher"]
    value, gradient = differentiated(rkd_distance, student, teacher)
    close(value, golden[f"{case}_dist_loss"])
    close(gradient, golden[f"{case}_dist_grad"])
    value, gradient = differentiated(rkd_angle, student, teacher, block_bytes=block_bytes)
    close(value, golden[f"{case}_angle_loss"])
    if case == "sdup":
        # The gradient of the equal rows is guarded, that of the others as released.
        assert golden["sdup_angle_grad_released_absmax"] > 1e9
        assert gradient.abs().max() < 1
        close(gradient[[0, 1, 2, 5]], golden["sdup_angle_grad_released_rows_ok"])
    else:
        close(gradient, golden[f"{case}_angle_grad"])


def test_scale_rotation_and_translation_of_the_student_change_nothing():
    golden = load("edge_cases.npz")
    for name, loss in (("dist", rkd_distance), ("angle", rkd_angle)):
        for copy in "ab":
            value = loss(golden[f"inv_student_{copy}"], golden["inv_teacher"])
            close(value, golden[f"inv_{name}_loss_{copy}"])


def test_adam_trajectory():
    golden = load("adam_trajectory.npz")
    student = golden["student_steps"][0].clone().requires_grad_()
    optimizer = torch.optim.Adam(
        [student], lr=float(golden["lr"]), weight_decay=float(golden["weight_decay"])
    )
    loss = DistillationSum(
        {"distance": RKDDistance(), "angle": RKDAngle()}, {"distance": 1.0, "angle": 2.0}
    )
    for step, expected in enumerate(golden["losses"]):
        values = loss.values(Features(student), Features(golden["teacher"]))
        total = loss.total(values)
        close(torch.stack([total, values["distance"], values["angle"]]).detach(), expected)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        close(student.detach(), golden["student_steps"][step + 1], rtol=1e-7, atol=1e-9)


def test_feature_baselines():
    golden = load("feature_baselines.npz")
    value, gradient = differentiated(
        attention_transfer, golden["student_map"], golden["teacher_map"]
    )
    close(value, golden["at_loss"])
    close(gradient, golden["at_grad"])

    weight = golden["fitnet_weight"][:, :, 0, 0].clone().requires_grad_()
    value, gradient = differentiated(
        fitnet_loss, golden["student_map"], golden["teacher_map"], weight
    )
    close(value, golden["fitnet_loss"])
    close(gradient, golden["fitnet_grad"])
    close(weight.grad, golden["fitnet_weight_grad"][:, :, 0, 0])

    value, gradient = differentiated(
        fitnet_loss, golden["fitnet_vec_student"], golden["fitnet_vec_teacher"], weight
    )
    close(value, golden["fitnet_vec_loss"])
    close(gradient, golden["fitnet_vec_grad"])


def test_released_recall():
    golden = load("recall.npz")
    ks = golden["ks"].tolist()
    found = retrieval_metrics(
        golden["embeddings"], golden["labels"], metrics=(), recall_at=ks, metric="l2"
    )
    assert [found[f"recall_at_{k}"] for k in ks] == pytest.approx(
        golden["recall"].tolist(), abs=1e-7
    )


# -- definitions and properties ------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(0, 7),
    dims=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    seed=st.integers(0, 2**16),
    block_bytes=st.sampled_from([*BLOCKS, 700]),
)
@example(n=6, dims=(1, 1), seed=269, block_bytes=2**22)  # two of them are .0003 apart
def test_angle_equals_its_definition(n, dims, seed, block_bytes):
    student, teacher = points(n, dims[0], seed), points(n, dims[1], seed + 1)
    value, gradient = differentiated(rkd_angle, student, teacher, block_bytes=block_bytes)
    if n == 0:
        assert value == 0
        return
    expected, expected_gradient = differentiated(angle_by_definition, student, teacher)
    close(value, expected)
    # On a line all angles are flat or none, and a gradient of zero is a difference of large terms:
    # inner products know a short distance to the square of its inverse less exactly, and a
    # gradient has it once more.
    nearest = torch.nn.functional.pdist(student).min() if n > 1 else torch.ones(())
    atol = max(1e-7, 1e-16 / float(nearest) ** 3) if 1 in dims else 1e-11
    close(gradient, expected_gradient, rtol=1e-7, atol=atol)


@settings(max_examples=15, deadline=None)
@given(n=st.integers(2, 8), seed=st.integers(0, 2**16), tuples=st.sampled_from(["all", "distinct"]))
def test_order_of_the_batch_does_not_matter(n, seed, tuples):
    student, teacher = points(n, 3, seed), points(n, 4, seed + 1)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    for loss in (rkd_distance, rkd_angle):
        value, gradient = differentiated(loss, student, teacher, tuples=tuples)
        shuffled, its_gradient = differentiated(loss, student[order], teacher[order], tuples=tuples)
        close(shuffled, value)
        close(its_gradient, gradient[order], rtol=1e-7)


def test_groups_are_batches_of_their_own():
    student, teacher = points(10, 3, 0), points(10, 4, 1)
    value, gradient = differentiated(rkd_angle, student, teacher, group_size=5)
    parts = [differentiated(rkd_angle, student[s], teacher[s]) for s in (slice(5), slice(5, 10))]
    close(value, (parts[0][0] + parts[1][0]) / 2)
    close(gradient, torch.cat([part[1] for part in parts]) / 2)
    uneven = rkd_angle(student, teacher, group_size=6)
    first, rest = rkd_angle(student[:6], teacher[:6]), rkd_angle(student[6:], teacher[6:])
    close(uneven, (216 * first + 64 * rest) / 280)


@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_nearly_equal_single_precision_rows_keep_their_angles(shift):
    """In float32 a Gram matrix has no digit left for rows 1e-3 apart at distance 1000."""
    student = points(6, 3, 0, torch.float32) + shift
    student[1] = student[0] + torch.tensor([2.0**-10, 0, 0])
    teacher = points(6, 4, 1, torch.float32)
    value, gradient = differentiated(rkd_angle, student, teacher)
    expected, expected_gradient = differentiated(
        angle_by_definition, student.double(), teacher.double()
    )
    close(value, expected.float(), rtol=1e-6)
    scale = expected_gradient.abs().max().item()
    close(gradient, expected_gradient.float(), rtol=1e-5, atol=1e-6 * scale)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_equal_rows_are_recognised_at_any_scale(scale):
    student, teacher = points(8, 16, 0, torch.float32) * scale, points(8, 5, 1, torch.float32)
    student[3] = student[5]
    value, gradient = differentiated(rkd_angle, student, teacher)
    assert gradient.abs().max() < 1 / scale
    unscaled = rkd_angle(student / scale, teacher)
    close(value, unscaled, rtol=1e-5)


def test_a_collapsed_student_gives_finite_numbers():
    student = torch.full((6, 3), 0.7)
    for loss in (rkd_distance, rkd_angle, hard_darkrank):
        value, gradient = differentiated(loss, student, points(6, 4, 0, torch.float32))
        assert value.isfinite()
        assert not gradient.any()


@pytest.mark.parametrize("n", [0, 1])
@pytest.mark.parametrize("loss", [rkd_distance, rkd_angle, hard_darkrank])
def test_too_small_a_batch_costs_nothing(loss, n):
    value, gradient = differentiated(loss, torch.ones(n, 3), torch.ones(n, 4))
    assert value == 0
    assert not gradient.any()


def test_darkrank_ranks_what_a_small_batch_has():
    student, teacher = points(3, 2, 0), points(3, 2, 1)
    distance = pair_distances(student)
    order = pair_distances(teacher).fill_diagonal_(torch.inf).argsort(dim=1)[:, :2]
    score = -2 * distance.gather(1, order) ** 3
    expected = (torch.logsumexp(score, dim=1) - score[:, 0]).mean()
    close(hard_darkrank(student, teacher), expected)
    assert hard_darkrank(student, teacher, list_length=1) == 0


def test_half_precision_is_computed_in_full():
    student, teacher = (points(9, 8, seed, torch.float32).bfloat16() for seed in (0, 1))
    for loss in (rkd_distance, rkd_angle, hard_darkrank):
        exact = loss(student.float(), teacher.float())
        with torch.autocast("cpu", torch.bfloat16):
            value, gradient = differentiated(loss, student, teacher)
        assert value.dtype == torch.float32
        assert value == exact
        assert gradient.dtype == torch.bfloat16


# -- the contract --------------------------------------------------------------------------------


def features(seed, dim=4, channels=3):
    generator = torch.Generator().manual_seed(seed)
    return Features(
        embedding=torch.randn(6, dim, generator=generator),
        logits=torch.randn(6, 5, generator=generator),
        maps={"block3": torch.randn(6, channels, 2, 2, generator=generator)},
    )


def tracked(x):
    """The same features, with gradients."""
    return Features(
        x.embedding.requires_grad_(),
        x.logits.requires_grad_(),
        {name: maps.requires_grad_() for name, maps in x.maps.items()},
    )


TERMS = {
    "distance": lambda: RKDDistance(),
    "angle": lambda: RKDAngle(),
    "darkrank": lambda: HardDarkRank(),
    "hinton": lambda: HintonDistillation(),
    "attention": lambda: AttentionTransfer(["block3"]),
    "fitnet": lambda: FitNet({"block3": 3, "embedding": 4}, {"block3": 5, "embedding": 7}),
}


@pytest.mark.parametrize("name", TERMS)
def test_the_student_learns_and_the_teacher_does_not(name):
    student, teacher = tracked(features(0)), tracked(features(1, dim=7, channels=5))
    loss = TERMS[name]()
    loss(student, teacher).backward()
    reached = [x.grad is not None for x in (student.embedding, student.logits)]
    reached.append(student.maps["block3"].grad is not None)
    assert reached == {
        "hinton": [False, True, False],
        "attention": [False, False, True],
        "fitnet": [True, False, True],
    }.get(name, [True, False, False])
    for x in (teacher.embedding, teacher.logits, *teacher.maps.values()):
        assert x.grad is None
    assert loss.needs_maps == (name in {"attention", "fitnet"})
    assert loss.needs_logits == (name == "hinton")
    assert all(p.grad is not None for p in loss.parameters())


@pytest.mark.parametrize("name", TERMS)
def test_a_perfect_student_has_nothing_to_learn(name):
    x = features(0)
    loss = TERMS[name]()
    if name == "fitnet":
        loss = FitNet({"block3": 3}, {"block3": 3})
        with torch.no_grad():
            loss.adapters[0].copy_(torch.eye(3))
    value = loss(x, x)
    if name == "darkrank":
        other = Features(embedding=x.embedding.flip(0))
        assert value < loss(other, x), "a likelihood is highest for the own ranking"
    else:
        close(value, torch.zeros(()), atol=1e-6)


def test_softened_divergence_by_definition():
    student, teacher = points(4, 5, 0), points(4, 5, 1)
    p, q = ((x / 4).softmax(dim=1) for x in (teacher, student))
    expected = 16 * (p * (p / q).log()).sum(dim=1).mean()
    close(softened_divergence(student, teacher, 4.0), expected)


def test_a_sum_is_composed_in_yaml():
    node = OmegaConf.create(
        """
        _target_: noisyml.losses.distillation.classical.DistillationSum
        terms:
          distance: {_target_: noisyml.losses.distillation.relational.RKDDistance, tuples: distinct}
          angle: {_target_: noisyml.losses.distillation.relational.RKDAngle, group_size: 3}
          attention:
            _target_: noisyml.losses.distillation.classical.AttentionTransfer
            layers: [block3]
          hinton:
            _target_: noisyml.losses.distillation.classical.HintonDistillation
            temperature: 2.0
        weights: {distance: 3.0, attention: 0.0, hinton: 0.5}
        """
    )
    loss = instantiate(node, _convert_="all")
    student, teacher = features(0), features(1)
    values = loss.values(student, teacher)
    assert list(values) == ["distance", "angle", "hinton"], "a weight of 0 is not computed"
    assert not loss.needs_maps
    assert loss.needs_logits
    expected = 3 * values["distance"] + values["angle"] + 0.5 * values["hinton"]
    close(loss(student, teacher), expected, rtol=1e-6)
    close(
        values["angle"],
        rkd_angle(student.embedding, teacher.embedding, group_size=3),
        rtol=1e-6,
    )


def test_adapters_are_parameters_from_the_start():
    torch.manual_seed(0)
    loss = FitNet({"block.3": 30, "embedding": 40}, {"block.3": 50, "embedding": 70})
    assert [tuple(p.shape) for p in loss.parameters()] == [(50, 30), (70, 40)]
    assert all(p.abs().max().item() == pytest.approx(0.005, rel=0.01) for p in loss.parameters())
    frozen = FitNet({"a": 2}, {"a": 3}, trainable=False)
    assert not any(p.requires_grad for p in frozen.parameters())
    assert "adapters.0" in frozen.state_dict()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: RKDDistance("some"), "tuples=some must be all or distinct"),
        (
            lambda: RKDAngle(group_size=2),
            "group_size=2 must be a whole number of at least 3 or null",
        ),
        (lambda: RKDAngle(eps=-1.0), "eps=-1.0 must be"),
        (lambda: HardDarkRank(list_length=0), "list_length=0 must be"),
        (lambda: HintonDistillation(0.0), "temperature=0.0 must be a number above 0"),
        (lambda: AttentionTransfer([]), "names no layers"),
        (lambda: FitNet({}, {}), "all are missing"),
        (lambda: FitNet({"a": 2}, {"b": 2}), "a, b are missing"),
        (lambda: DistillationSum({}), "has no terms"),
        (lambda: DistillationSum({"a": RKDAngle()}, {"b": 1.0}), "weighs a term 'b'"),
        (lambda: DistillationSum({"a": RKDAngle()}, {"a": 0.0}), "all its weights are 0"),
        (
            lambda: AttentionTransfer(["block9"])(features(0), features(1)),
            "gives block3, embedding",
        ),
        (
            lambda: attention_transfer(torch.ones(1, 2, 3, 3), torch.ones(1, 2, 4, 4)),
            "3 x 3 and 4 x 4",
        ),
        (
            lambda: FitNet({"block3": 9}, {"block3": 3})(features(0), features(1)),
            "maps 9 to 3 channels, but student and teacher have 3 and 3",
        ),
    ],
)
def test_mistakes_are_named_in_a_sentence(make, said):
    with pytest.raises(UserError, match=said):
        make()


@pytest.mark.parametrize("loss", [RKDDistance(), HintonDistillation()])
def test_a_method_must_hand_over_what_a_loss_reads(loss):
    with pytest.raises(ValueError, match="this distillation loss needs"):
        loss(Features(), Features())

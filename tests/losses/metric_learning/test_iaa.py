"""Intra-class augmentation: state, copies, losses and schedule of the released code; options."""

import functools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import paths, vectors
from support.vectors import close

from noisyml.errors import UserError
from noisyml.losses.metric_learning.cbml import CBMLLoss
from noisyml.losses.metric_learning.class_covariance import (
    ClassCovariance,
    correction_weight,
    full_class_moments,
    neighbor_covariance,
)
from noisyml.losses.metric_learning.contrastive import ContrastiveLoss
from noisyml.losses.metric_learning.iaa import AugmentationSchedule, augmented_loss
from noisyml.losses.metric_learning.pair_losses import (
    HardestNegativeTripletLoss,
    MultiSimilarityLoss,
    TwoMarginContrastiveLoss,
)
from noisyml.losses.metric_learning.pairs import PairLoss, Pairs, Samples, cosine_pairs
from noisyml.metrics.retrieval import retrieval_metrics

GOLDEN = paths.GOLDEN / "iaa"
load = functools.partial(vectors.tensors, GOLDEN)


def moments(rows, labels, num_classes):
    count, mean, covariance = full_class_moments(rows, labels, num_classes)
    return count, mean, covariance.diagonal(dim1=1, dim2=2)


def with_covariance(covariance, **options):
    """Statistics whose classes have the given variances."""
    statistics = ClassCovariance(*covariance.shape, neighbor_correction="off", **options)
    count = torch.full((len(covariance),), 5.0)
    statistics.update(count, torch.zeros_like(covariance), covariance)
    return statistics


# -- the estimator ---------------------------------------------------------------------------------


def test_estimator_of_few_classes():
    case = load("estimator_small.npz")
    statistics = ClassCovariance(
        *case["mean_0"].shape, momentum=case["momentum"].item(), neighbor_correction="off"
    )
    for step in range(3):
        found = moments(case[f"feats_{step}"], case[f"labels_{step}"], len(case["mean_0"]))
        assert torch.equal(found[0].long(), case[f"counts_{step}"])
        statistics.update(*found)
        close(statistics.mean, case[f"mean_{step}"])
        close(statistics.covariance, case[f"covariance_{step}"])
        close(statistics.count, case[f"amount_{step}"])


@pytest.mark.parametrize("memory_budget_bytes", [1, 20_000, 2**28])
def test_estimator_of_many_classes(memory_budget_bytes):
    """The released neighbour covariance holds to 5e-9: see the comment."""
    case = load("estimator_large.npz")
    num_classes, width = case["mean_0"].shape
    options = {
        "neighbors": case["num_neighbor"].item(),
        "memory_budget_bytes": memory_budget_bytes,
    }
    statistics = ClassCovariance(
        num_classes,
        width,
        momentum=case["momentum"].item(),
        neighbor_correction="on",
        beta=case["beta"].item(),
        gamma=case["gamma"].item(),
        tau_inclusive=False,
        kernel_distance="released",
        singletons="untouched",
        **options,
    )
    for step in range(3):
        found = moments(case[f"feats_{step}"], case[f"labels_{step}"], num_classes)
        assert torch.equal(found[0].long(), case["counts"])
        statistics.update(*found)
        close(statistics.mean, case[f"mean_{step}"])
        close(statistics.covariance, case[f"covariance_{step}"])
        close(statistics.count, case[f"amount_{step}"])
        close(statistics.correction_weight, case[f"class_weight_{step}"])
        close(statistics.global_covariance, case[f"global_covariance_{step}"])
        # The released code finds the distance of a class to itself as the root of a rounding error
        # (up to 1e-8) and maps distances by it; here it is 0.
        close(
            statistics.neighbor_covariance,
            case[f"neighbor_covariance_{step}"],
            rtol=5e-9,
            atol=5e-9,
        )
        everyone = torch.arange(num_classes)
        close(statistics.covariance_of(everyone), case[f"calibrated_{step}"], rtol=5e-9, atol=5e-9)

        state = (statistics.mean, statistics.covariance, statistics.class_size)
        found = neighbor_covariance(*state, **options)
        assert torch.equal(found.index, case[f"neighbor_index_{step}"])
        close(found.weights, case[f"derived_minmax_valid_weights_{step}"])
        close(found.covariance, case[f"derived_minmax_valid_neighbor_cov_{step}"])
        found = neighbor_covariance(*state, kernel_distance="raw", **options)
        close(found.weights, case[f"derived_raw_distance_weights_{step}"])
        close(found.covariance, case[f"derived_raw_distance_neighbor_cov_{step}"])
        found = neighbor_covariance(
            *state, mean_sigma=math.inf, covariance_sigma=math.inf, **options
        )
        close(found.covariance, case[f"derived_count_only_neighbor_cov_{step}"])


def statistics_of(seed, num_classes=12, width=4, largest=9):
    generator = torch.Generator().manual_seed(seed)
    size = torch.randint(0, largest, (num_classes,), generator=generator)
    size[0] = 2
    labels = torch.arange(num_classes).repeat_interleave(size)
    rows = torch.randn(len(labels), width, generator=generator, dtype=torch.float64)
    return rows + torch.randn(num_classes, width, generator=generator).double()[labels], labels


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), neighbors=st.integers(1, 20), rows=st.integers(1, 12))
def test_neighbors_equal_their_definition(seed, neighbors, rows):
    """Class by class, whatever the block; fewer neighbours than asked for are all there are."""
    size, mean, variance = moments(*statistics_of(seed), 12)
    found = neighbor_covariance(
        mean,
        variance,
        size,
        neighbors=neighbors,
        kernel_distance="raw",
        memory_budget_bytes=rows * 8 * (8 * 12 + 2 * min(neighbors, 12) * 4),
    )
    for k in range(12):
        candidates = [i for i in range(12) if i != k and size[i] > 1]
        by_mean = {i: float((mean[i] ** 2 - mean[k] ** 2).norm()) for i in candidates}
        nearest = sorted(candidates, key=by_mean.get)[:neighbors]
        assert [i for i in found.index[k].tolist() if i >= 0] == nearest
        if not nearest:
            assert not found.covariance[k].any()
            continue
        weights = torch.tensor(
            [
                float(size[i])
                * math.exp(
                    -(by_mean[i] ** 2) / 2 - float((variance[i] - variance[k]).norm() ** 2) / 2
                )
                for i in nearest
            ],
            dtype=torch.float64,
        )
        torch.testing.assert_close(found.weights[k, : len(nearest)], weights, rtol=1e-9, atol=0)
        if weights.sum() > 1e-200:
            expected = weights @ variance[nearest] / weights.sum()
            close(found.covariance[k], expected)


def test_distant_neighbors_do_not_vanish():
    """Raw distances so large that every weight underflows still give a mean."""
    size = torch.full((4,), 3.0)
    mean = torch.tensor([[0.0], [10.0], [20.0], [30.0]], dtype=torch.float64)
    found = neighbor_covariance(mean, mean + 1, size, neighbors=2, kernel_distance="raw")
    assert not found.weights.any()
    close(found.covariance, torch.tensor([[11.0], [1.0], [11.0], [21.0]], dtype=torch.float64))


def test_a_class_alone_takes_the_global_covariance():
    count = torch.tensor([2.0, 1.0, 0.0])
    variance = torch.tensor([[4.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    mean = torch.tensor([[1.0, 2.0], [3.0, 1.0], [0.0, 0.0]])
    statistics = ClassCovariance(3, 2, neighbor_correction="on")
    statistics.update(count, mean, variance)
    expected = variance[0].double().expand(3, -1)
    close(statistics.covariance_of(torch.arange(3)), expected)


def test_correction_fades_with_the_size():
    size = torch.tensor([1, 2, 39, 40, 41])
    paper = correction_weight(size, beta=0.1, tau=40)
    released = correction_weight(size, beta=0.1, tau=40, tau_inclusive=False)
    assert paper[0] == 1
    assert paper[1] == pytest.approx(1 / (1 + math.log(1.1)))
    assert paper[3] == pytest.approx(1 / (1 + math.log(1 + 0.1 * 39)))
    assert (paper > 0).tolist() == [True, True, True, True, False]
    assert (released > 0).tolist() == [True, True, True, False, False]


@pytest.mark.parametrize(("per_class", "corrected"), [(40, True), (41, False)])
def test_automatic_correction_looks_at_samples_per_class(per_class, corrected):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(4).repeat_interleave(per_class)
    rows = torch.randn(len(labels), 3, generator=generator)
    found = moments(rows, labels, 4)
    statistics = {
        mode: ClassCovariance(4, 3, neighbor_correction=mode) for mode in ("auto", "on", "off")
    }
    for one in statistics.values():
        one.update(*found)
    used = {mode: one.covariance_of(torch.arange(4)) for mode, one in statistics.items()}
    assert torch.equal(used["auto"], used["on" if corrected else "off"])
    assert torch.equal(used["on"], used["off"]) != corrected
    close(used["off"], found[2])


@pytest.mark.parametrize(("written", "meant"), [(True, "on"), (False, "off"), ("auto", "auto")])
def test_yaml_reads_on_and_off_as_booleans(written, meant):
    assert ClassCovariance(3, 2, neighbor_correction=written).neighbor_correction == meant


def test_absent_classes_keep_their_statistics():
    rows, labels = statistics_of(3)
    statistics = ClassCovariance(12, 4)
    statistics.update(*moments(rows, labels, 12))
    before = {name: buffer.clone() for name, buffer in statistics.named_buffers()}
    some = labels < 6
    statistics.update(*moments(rows[some] + 1.0, labels[some], 12))
    for name in ("mean", "covariance", "count", "class_size"):
        assert torch.equal(statistics.get_buffer(name)[6:], before[name][6:])
    seen = before["count"][:6] > 0
    assert (statistics.mean[:6][seen] != before["mean"][:6][seen]).all()


def test_single_samples_have_a_mean():
    """Unless asked for the released rule, which leaves them at the origin."""
    rows = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 9.0]])
    labels = torch.tensor([0, 1, 1])
    for singletons, expected in (("estimated", rows[0]), ("untouched", torch.zeros(2))):
        statistics = ClassCovariance(2, 2, singletons=singletons)
        statistics.update(*moments(rows, labels, 2))
        close(statistics.mean[0], expected.double())
        assert statistics.count.tolist() == [1, 2]


def test_statistics_survive_a_checkpoint():
    rows, labels = statistics_of(5)
    for covariance in ("diagonal", "full"):
        first = ClassCovariance(12, 4, covariance=covariance)
        count, mean, full = full_class_moments(rows, labels, 12)
        spread = full if covariance == "full" else full.diagonal(dim1=1, dim2=2)
        first.update(count, mean, spread)
        second = ClassCovariance(12, 4, covariance=covariance)
        with pytest.raises(ValueError, match="update"):
            second.shifts(rows, labels, copies=1, strength=1.0)
        second.load_state_dict(first.state_dict())
        noise = torch.ones(2, *rows.shape)
        copies = [
            one.shifts(rows, labels, copies=2, strength=0.5, noise=noise) for one in (first, second)
        ]
        assert torch.equal(*copies)
        assert first.half().mean.dtype == torch.float64


# -- the copies ------------------------------------------------------------------------------------


@pytest.mark.parametrize("copies", [1, 2, 3])
@pytest.mark.parametrize(
    ("square_root", "field"), [("constant", "derived"), ("repeated", "released")]
)
def test_synthesis(copies, square_root, field):
    case = load("synthesis.npz")
    statistics = with_covariance(case["covariance"], square_root=square_root)
    made = statistics.synthesise(
        case["feats"],
        case["labels"],
        copies=copies,
        strength=case["lamda"].item(),
        noise=case["noise"][:copies],
    )
    assert len(case["noise"]) == case["aug_num"]
    close(made.flatten(0, 1), case[f"{field}_aug_{copies}"])
    assert torch.equal(case["labels"].repeat(copies), case[f"released_aug_labels_{copies}"])


@pytest.mark.parametrize("covariance", ["diagonal", "full", "global", "identity"])
def test_copies_have_the_covariance_they_should(covariance):
    generator = torch.Generator().manual_seed(0)
    mixing = torch.tensor([[1.0, 0.0], [0.9, 0.4]], dtype=torch.float64)
    rows = torch.cat(
        [torch.randn(50, 2, generator=generator).double() @ m for m in (mixing, 0.1 * mixing)]
    )
    labels = torch.arange(2).repeat_interleave(50)
    count, mean, full = full_class_moments(rows, labels, 2)
    diagonal = full.diagonal(dim1=1, dim2=2)
    statistics = ClassCovariance(2, 2, covariance=covariance)
    assert statistics.needs_pass == (covariance != "identity")
    if statistics.needs_pass:
        statistics.update(count, mean, full if covariance == "full" else diagonal)
    expected = {
        "diagonal": diagonal.diag_embed(),
        "full": full,
        "global": diagonal.mean(0).diag().expand(2, -1, -1),
        "identity": torch.eye(2).double().expand(2, -1, -1),
    }[covariance]
    shift = statistics.shifts(
        mean, torch.arange(2), copies=40_000, strength=0.25, generator=generator
    )
    measured = torch.einsum("mbi,mbj->bij", shift, shift) / len(shift)
    torch.testing.assert_close(
        measured, 0.25 * expected, rtol=0.06, atol=0.02 * float(expected.max())
    )
    assert shift.mean(0).abs().max() < 0.02


def test_full_covariance_of_few_samples():
    """Singular matrices have roots, and the size of blocks changes nothing."""
    rows, labels = statistics_of(7, num_classes=6, width=5)
    found = full_class_moments(rows, labels, 6)
    noise = torch.randn(2, *rows.shape, generator=torch.Generator().manual_seed(1)).double()
    made = []
    for budget in (1, 2**28):
        statistics = ClassCovariance(
            6, 5, covariance="full", neighbor_correction="on", memory_budget_bytes=budget
        )
        statistics.update(*full_class_moments(rows, labels, 6, memory_budget_bytes=budget))
        made.append(statistics.shifts(rows, labels, copies=2, strength=1.0, noise=noise))
    close(made[0], made[1])
    used = statistics.covariance_of(labels)
    root = statistics.root[labels]
    close(root @ root, used)
    close(made[1], torch.einsum("bij,mbj->mbi", root, noise))
    alone = ClassCovariance(6, 5, covariance="full", neighbor_correction="off")
    alone.update(*found)
    close(alone.covariance_of(labels), found[2][labels])
    for label in labels.unique():
        own = rows[labels == label]
        close(found[2][label], torch.cov(own.T, correction=0))


def test_noise_comes_from_its_generator():
    case = load("synthesis.npz")
    statistics = with_covariance(case["covariance"])
    rows = case["feats"].float().requires_grad_()

    def make(seed):
        return statistics.shifts(
            rows,
            case["labels"],
            copies=2,
            strength=0.5,
            generator=torch.Generator().manual_seed(seed),
        )

    first = make(0)
    assert torch.equal(first, make(0))
    assert not torch.equal(first, make(1))
    assert not torch.equal(first[0], first[1])
    assert first.dtype == torch.float32
    assert not first.requires_grad
    assert not first[:, case["labels"] == 1].any()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert make(0).dtype == torch.float32


# -- the losses ------------------------------------------------------------------------------------


def augmented(case, copies, square_root, prefix=""):
    """Raw leaf rows and the shifts of their copies, made from the stored noise."""
    covariance = case[f"{prefix}covariance"]
    statistics = with_covariance(covariance, square_root=square_root)
    raw = case[f"{prefix}feats"].clone().requires_grad_()
    shifts = statistics.shifts(
        raw,
        case[f"{prefix}labels"],
        copies=copies,
        strength=case[f"{prefix}lamda"].item(),
        noise=case[f"{prefix}noise"][:copies],
    )
    return raw, shifts


LOSSES = {
    "ms_loss.npz": MultiSimilarityLoss(),
    "contrastive_loss.npz": TwoMarginContrastiveLoss(),
}


@pytest.mark.parametrize("name", ["ms_loss.npz", "contrastive_loss.npz"])
@pytest.mark.parametrize(
    ("field", "square_root"), [("released", "repeated"), ("constant_sigma", "constant")]
)
@pytest.mark.parametrize("copies", [0, 1, 2, 3])
@pytest.mark.parametrize("given", ["shifts", "copies"])
def test_losses_with_copies(name, field, square_root, copies, given):
    case = load(name)
    if copies == 0:
        field = "released"
    raw, shifts = augmented(case, copies, square_root)
    everything = torch.nn.functional.normalize(
        torch.cat([raw, (raw + shifts).flatten(0, 1)]), dim=1
    )
    close(everything, case[f"{field}_all_embeddings_M{copies}"])
    assert torch.equal(case["labels"].repeat(copies + 1), case[f"all_labels_M{copies}"])
    made = {"shifts": shifts, "copies": raw + shifts}[given] if copies else None
    value = augmented_loss(LOSSES[name], raw, case["labels"], **{given: made})
    value.backward()
    close(value, case[f"{field}_loss_M{copies}"])
    close(raw.grad, case[f"{field}_grad_M{copies}"])


@pytest.mark.parametrize("copies", [0, 1, 2, 3])
def test_anchors_that_multi_similarity_uses(copies):
    """An anchor not used costs nothing on its own."""
    case = load("ms_loss.npz")
    columns = case[f"released_all_embeddings_M{copies}"]
    number = torch.arange(len(case["labels"]))
    for i in range(len(number)):
        row = slice(i, i + 1)
        anchors = Samples(columns[row], case["labels"][row], number[row])
        others = Samples(columns, case[f"all_labels_M{copies}"], number.repeat(copies + 1))
        value = MultiSimilarityLoss().of(cosine_pairs(anchors, others))
        assert bool(value > 0) == bool(case[f"anchor_used_M{copies}"][i])


@pytest.mark.parametrize(("margin", "field"), [(0.2, "margin_02"), (0.5, "margin_05")])
def test_triplets_with_copies(margin, field):
    case = load("triplet_derived.npz")
    raw, shifts = augmented(case, len(case["noise"]), "constant")
    value = augmented_loss(HardestNegativeTripletLoss(margin), raw, case["labels"], shifts=shifts)
    value.backward()
    close(value, case[f"derived_loss_{field}"])
    close(raw.grad, case[f"derived_grad_{field}"])
    # A margin above all distances makes every triplet active: the loss grows by their number.
    far, farther = (
        augmented_loss(HardestNegativeTripletLoss(m), raw, case["labels"], shifts=shifts)
        for m in (5, 6)
    )
    triplets = (farther - far) * len(case["labels"])
    assert triplets.item() == pytest.approx(case["derived_num_triplets"].item())


@pytest.mark.parametrize("prefix", ["nopos", "dup", "onecls"])
def test_edges_of_multi_similarity(prefix):
    case = load("edge_cases.npz")
    raw = case[f"{prefix}_feats"].requires_grad_()
    value = augmented_loss(MultiSimilarityLoss(), raw, case[f"{prefix}_labels"], None)
    value.backward()
    close(value, case[f"{prefix}_ms_loss"])
    close(raw.grad, case[f"{prefix}_ms_grad"])


@pytest.mark.parametrize(
    ("kind", "loss"), [("ms", MultiSimilarityLoss()), ("contrastive", TwoMarginContrastiveLoss())]
)
def test_own_copies_are_no_positives(kind, loss):
    case = load("edge_cases.npz")
    case |= {f"nopos_aug_{key}": case[f"nopos_{key}"] for key in ("feats", "labels")}
    raw, shifts = augmented(case, 1, "constant", "nopos_aug_")
    value = augmented_loss(loss, raw, case["nopos_labels"], shifts=shifts)
    value.backward()
    close(value, case[f"nopos_aug_{kind}_loss"])
    close(raw.grad, case[f"nopos_aug_{kind}_grad"])


@pytest.mark.parametrize(
    "loss",
    [MultiSimilarityLoss(), TwoMarginContrastiveLoss(), HardestNegativeTripletLoss(), CBMLLoss()],
    ids=lambda loss: type(loss).__name__,
)
@pytest.mark.parametrize("given", ["shifts", "copies"])
def test_dropped_samples_take_their_copies_along(loss, given):
    case = load("ms_loss.npz")
    statistics = with_covariance(case["covariance"])
    keep = torch.rand(len(case["labels"]), generator=torch.Generator().manual_seed(0)) < 0.7
    assert keep.any()
    assert not keep.all()
    whole = torch.where(keep[:, None], case["feats"], torch.nan).requires_grad_()
    alone = case["feats"][keep].requires_grad_()
    values = []
    for raw, labels, noise, kept in (
        (whole, case["labels"], case["noise"], keep),
        (alone, case["labels"][keep], case["noise"][:, keep], None),
    ):
        make = {"shifts": statistics.shifts, "copies": statistics.synthesise}[given]
        made = make(raw, labels, copies=3, strength=0.8, noise=noise)
        values.append(augmented_loss(loss, raw, labels, **{given: made}, keep=kept))
        values[-1].backward()
    assert torch.equal(*values)
    close(whole.grad[keep], alone.grad)
    assert values[0] > 0


def test_copies_and_shifts_are_not_given_at_once():
    case = load("ms_loss.npz")
    raw, shifts = augmented(case, 2, "constant")
    with pytest.raises(ValueError, match="not both"):
        augmented_loss(ContrastiveLoss(), raw, case["labels"], raw + shifts, shifts=shifts)


def test_the_gradient_of_a_copy_flows_into_its_embedding():
    case = load("ms_loss.npz")
    rows = case["feats"].clone().requires_grad_()
    statistics = with_covariance(case["covariance"])
    statistics.synthesise(rows, case["labels"], copies=2, strength=0.5).sum().backward()
    assert (rows.grad == 2).all()


def test_other_losses_take_copies_as_samples():
    case = load("ms_loss.npz")
    raw, shifts = augmented(case, 2, "constant")
    keep = torch.arange(len(raw)) > 2
    value = augmented_loss(ContrastiveLoss(), raw, case["labels"], shifts=shifts, keep=keep)
    everything = torch.cat([raw, (raw + shifts).flatten(0, 1)])
    everything = torch.nn.functional.normalize(everything, dim=1)
    plain = ContrastiveLoss()(everything, case["labels"].repeat(3), keep=keep.repeat(3))
    assert torch.equal(value, plain)
    assert value > 0


@pytest.mark.parametrize("copies", [0, 2])
def test_gradients_of_the_cosines_are_those_of_autograd(copies):
    raw = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    raw[3] = 0  # has no direction
    labels = torch.tensor([0, 0, 1, 1, 0])
    shifts = torch.randn(
        copies, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    cosines = []

    def cost(pairs):
        cosines.append(pairs.similarity)
        weights = torch.arange(pairs.similarity.numel()).view_as(pairs.similarity)
        return (pairs.similarity * (0.1 + weights.cos())).square().sum()

    def ours(rows):
        return augmented_loss(PairLoss(cost), rows, labels, shifts=shifts)

    def plain(rows):
        unit = torch.nn.functional.normalize(
            torch.cat([rows, (rows + shifts).flatten(0, 1)]), dim=1
        )
        return cost(Pairs(unit[:5] @ unit.T, None, None, 5))

    found, graphs = [], []
    for function in (ours, plain):
        rows = raw.clone().requires_grad_()
        found.append(torch.autograd.grad(function(rows), rows)[0])
        (slope,) = torch.autograd.grad(function(rows), rows, create_graph=True)
        graphs.append(torch.autograd.grad(slope[:3].square().sum(), rows)[0])
    close(cosines[0], cosines[2])
    close(*found)
    # Autograd's norm has no second derivative at 0.
    close(*(graph[labels.new_tensor([0, 1, 2, 4])] for graph in graphs))


# -- the schedule ----------------------------------------------------------------------------------


def test_schedule():
    case = load("schedule.npz")
    schedule = AugmentationSchedule(
        strength=case["lamda"].item(),
        epochs=case["epochs"].item(),
        start_epoch=case["start_epoch"].item(),
        update_every=case["update_every"].item(),
    )
    epochs = case["epoch"].tolist()
    strengths = [schedule.strength_at(epoch) for epoch in epochs]
    assert strengths == pytest.approx(case["lamda_value"].tolist(), rel=1e-12)
    assert [e for e in epochs if schedule.updates_at(e)] == case["update_epochs"].tolist()
    assert [e for e in epochs if schedule.synthesises_at(e)] == list(range(31, 101))


def test_schedule_options():
    schedule = AugmentationSchedule(
        strength=0.5, epochs=35, start_epoch=2, warmup_epochs=3, update_every=4, decay=False
    )
    assert {schedule.strength_at(epoch) for epoch in range(1, 36)} == {0.5}
    assert [e for e in range(1, 13) if schedule.updates_at(e)] == [3, 7, 11]
    assert [e for e in range(1, 9) if schedule.synthesises_at(e)] == [6, 7, 8]
    falling = AugmentationSchedule(strength=1.0, epochs=35)
    assert [falling.strength_at(e) for e in (14, 15, 21, 22, 28, 29)] == [
        1,
        0.9,
        0.9,
        0.75,
        0.75,
        0.6,
    ]


# -- retrieval -------------------------------------------------------------------------------------


def test_retrieval_figures():
    """The released percentages pass through float32."""
    case = load("retrieval_metrics.npz")
    rows, labels = case["embeddings"], case["labels"]
    for prefix, ks, arguments in (
        ("", "ks", (rows, labels)),
        ("qg_", "qg_ks", (case["query_embeddings"], case["query_labels"], rows, labels)),
    ):
        recall = [f"recall_at_{k}" for k in case[ks].tolist()]
        found = retrieval_metrics(
            *arguments, metrics=["r_precision", "map_at_r", *recall], lone="zero"
        )
        expected = case[f"{prefix}recall_percent"].tolist()
        assert [100 * found[name] for name in recall] == pytest.approx(expected, abs=1e-4)
        for name in ("r_precision", "map_at_r"):
            value = case[f"{prefix}{name}_percent"].item()
            assert 100 * found[name] == pytest.approx(value, abs=1e-4)


# -- mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"covariance": "diag"}, "Did you mean 'diagonal'"),
        ({"neighbor_correction": "yes"}, "auto, on or off"),
        ({"kernel_distance": "max"}, "minmax, raw or released"),
        ({"singletons": "none"}, "estimated or untouched"),
        ({"square_root": "cubic"}, "constant or repeated"),
        ({"momentum": 1.5}, "momentum=1.5"),
        ({"gamma": -0.1}, "gamma=-0.1"),
        ({"mean_sigma": 0.0}, "mean_sigma"),
        ({"covariance_sigma": -1.0}, "covariance_sigma"),
        ({"neighbors": 0}, "neighbors=0"),
        ({"beta": -1.0}, "beta=-1.0"),
        ({"tau": -1}, "tau=-1"),
        ({"memory_budget_bytes": 0}, "memory_budget_bytes=0"),
        ({"covariance": "identity", "neighbor_correction": "on"}, "neighbours cannot correct"),
        ({"covariance": "full", "square_root": "repeated"}, "variances only"),
    ],
)
def test_mistakes_of_the_statistics(wrong, sentence):
    with pytest.raises(UserError, match=sentence):
        ClassCovariance(3, 2, **wrong)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"strength": -0.1}, "strength=-0.1"),
        ({"epochs": 0}, "epochs=0"),
        ({"start_epoch": -1}, "start_epoch=-1"),
        ({"warmup_epochs": -1}, "warmup_epochs=-1"),
        ({"update_every": 0}, "update_every=0"),
    ],
)
def test_mistakes_of_the_schedule(wrong, sentence):
    with pytest.raises(UserError, match=sentence):
        AugmentationSchedule(**{"strength": 0.8, "epochs": 100} | wrong)


def test_mistakes_of_an_update():
    statistics = ClassCovariance(3, 2)
    count, rows = torch.tensor([1, 1, 0]), torch.zeros(3, 2)
    with pytest.raises(UserError, match="two samples"):
        statistics.update(count, rows, rows)
    with pytest.raises(UserError, match="NaN"):
        statistics.update(count + 1, rows, rows + math.nan)
    with pytest.raises(ValueError, match="must be"):
        statistics.update(count, rows[:2], rows)
    statistics.update(count + 1, rows, rows)
    with pytest.raises(ValueError, match="noise"):
        statistics.shifts(rows, count, copies=2, strength=1.0, noise=rows[None])

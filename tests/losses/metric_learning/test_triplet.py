"""Sampled triplets: released samples, values and gradients, distributions, and the module."""

import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from support import paths, vectors
from support.vectors import close

from noisyml.errors import UserError
from noisyml.losses.metric_learning.distances import pair_distances
from noisyml.losses.metric_learning.triplet import (
    TripletLoss,
    Triplets,
    all_triplets,
    distance_weighted_triplets,
    distance_weights,
    hardest_triplets,
    random_triplets,
    semi_hard_triplets,
    triplet_loss,
)

ROOT = paths.ROOT
GOLDEN = ROOT / "tests" / "golden" / "rkd"
KINDS = ["random", "hardest", "semi_hard", "all", "distance_weighted"]


@pytest.fixture(scope="module")
def golden():
    return vectors.tensors(GOLDEN, "triplet_samplers")


def recorded(golden, name):
    return Triplets(*(golden[f"{name}_{part}"] for part in ("anchor", "pos", "neg")))


def sample(kind, rows, labels, seed=0):
    generator = torch.Generator().manual_seed(seed)
    if kind == "all":
        return all_triplets(labels)
    if kind == "random":
        return random_triplets(labels, generator=generator)
    if kind == "distance_weighted":
        weights = distance_weights(rows, labels)
        return distance_weighted_triplets(weights, labels, generator=generator)
    distances = pair_distances(rows)
    return (hardest_triplets if kind == "hardest" else semi_hard_triplets)(distances, labels)


def unit_rows(n, dim, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, dim, generator=generator, dtype=dtype), dim=1)


# -- reference vectors ---------------------------------------------------------------------------


def test_released_distances(golden):
    close(pair_distances(golden["embeddings"]), golden["pdist"])
    close(pair_distances(golden["embeddings"], squared=True), golden["pdist_squared"])


@pytest.mark.parametrize(
    ("kind", "name"), [("all", "all"), ("hardest", "hard"), ("semi_hard", "semihard")]
)
def test_released_samples(golden, kind, name):
    found = sample(kind, golden["embeddings_l2"], golden["labels"])
    for ours, theirs in zip(found, recorded(golden, name), strict=True):
        assert torch.equal(ours, theirs)


def test_released_weights(golden):
    weights = distance_weights(golden["embeddings_l2"], golden["labels"])
    close(weights[golden["distance_anchor"]], golden["distance_weights"])
    far = distance_weights(golden["far_embeddings"], golden["far_labels"])
    close(far, golden["far_weights"])


@pytest.mark.parametrize("name", ["all", "hard", "semihard", "distance"])
@pytest.mark.parametrize(("form", "key"), [("hinge", "triplet"), ("contrastive", "contrastive")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_released_losses(golden, name, form, key, dtype):
    leaf = golden["embeddings"].to(dtype, copy=True).requires_grad_()
    value = triplet_loss(
        F.normalize(leaf, dim=1),
        recorded(golden, name),
        margin=float(golden[f"{key}_margin"]),
        form=form,
    )
    value.backward()
    tolerance = {} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-6}
    close(value.detach(), golden[f"{name}_{key}_loss"].to(dtype), **tolerance)
    close(leaf.grad, golden[f"{name}_{key}_grad"].to(dtype), **tolerance)


# -- definitions ---------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(n=st.integers(0, 9), classes=st.integers(1, 4), seed=st.integers(0, 2**16))
@pytest.mark.parametrize("kind", KINDS)
def test_every_pair_with_negatives_meets_one(kind, n, classes, seed):
    rows = unit_rows(n, 4, seed)
    labels = torch.randint(classes, (n,), generator=torch.Generator().manual_seed(seed))
    anchor, positive, negative = sample(kind, rows, labels, seed)
    assert (labels[anchor] == labels[positive]).all()
    assert (labels[anchor] != labels[negative]).all()
    y = labels.tolist()
    pairs = [
        (a, p)
        for a in range(n)
        for p in range(n)
        if a != p and y[a] == y[p] and any(label != y[a] for label in y)
    ]
    found = list(zip(anchor.tolist(), positive.tolist(), strict=True))
    if kind != "all":
        assert found == pairs
        return
    triples = {(a, p, q) for a, p in pairs for q in range(n) if y[q] != y[a]}
    assert set(zip(*(x.tolist() for x in (anchor, positive, negative)), strict=True)) == triples
    assert len(found) == len(triples)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_hardest_and_semi_hard_by_definition(seed):
    rows = unit_rows(9, 3, seed)
    labels = torch.randint(3, (9,), generator=torch.Generator().manual_seed(seed))
    distance = pair_distances(rows)
    for kind in ("hardest", "semi_hard"):
        for a, p, q in zip(*(x.tolist() for x in sample(kind, rows, labels)), strict=True):
            negatives = {j: float(distance[a, j]) for j in range(9) if labels[j] != labels[a]}
            beyond = {j: d for j, d in negatives.items() if d > distance[a, p]}
            if kind == "hardest":
                assert q == min(negatives, key=negatives.get)
            elif beyond:
                assert q == min(beyond, key=beyond.get)
            else:
                assert q == max(negatives, key=negatives.get)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["random", "distance_weighted"])
def test_draws_follow_their_weights(golden, kind):
    rows, labels = golden["embeddings_l2"], golden["labels"]
    if kind == "random":
        expected = (labels[:, None] != labels).double() / 9
    else:
        expected = distance_weights(rows, labels)
    rounds = 4000
    counts = torch.zeros(12, 12, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    for _ in range(rounds):
        if kind == "random":
            drawn = random_triplets(labels, generator=generator)
        else:
            drawn = distance_weighted_triplets(expected, labels, generator=generator)
        counts.index_put_((drawn.anchor, drawn.negative), torch.ones(24).double(), True)
    trials = 2 * rounds  # every anchor has two positives
    deviation = (counts / trials - expected) / (expected * (1 - expected) / trials).sqrt()
    assert not counts[expected == 0].any()
    assert deviation[expected > 0].abs().max() < 4.5


def test_weights_survive_antipodes_and_many_dimensions():
    """The released weights of 512 dimensions vanish in float32 beside that of a close positive."""
    rows = unit_rows(8, 512, 0, torch.float32)
    rows[1] = F.normalize(rows[0] + 0.01 * rows[2], dim=0)
    rows[5] = -rows[4]
    rows[6] = F.normalize(rows[0] + 0.8 * rows[6], dim=0)
    labels = torch.tensor([0, 0, 1, 1, 2, 3, 3, 3])
    weights = distance_weights(rows, labels)
    close(weights.sum(dim=1), torch.ones(8, dtype=torch.float64))
    assert weights[0, 6] > 0.99, "the one negative nearer than the crowd at sqrt(2)"
    assert weights[4, 5] == 0


def test_a_single_class_makes_no_triplets():
    labels = torch.zeros(5, dtype=torch.int64)
    rows = unit_rows(5, 3, 0)
    assert not distance_weights(rows, labels).any()
    for kind in KINDS:
        leaf = rows.clone().requires_grad_()
        value = TripletLoss(kind)(leaf, labels)
        value.backward()
        assert value == 0
        assert not leaf.grad.any()


# -- the module ----------------------------------------------------------------------------------


def test_raw_embeddings_are_normalised(golden):
    raw = golden["embeddings"].clone().requires_grad_()
    value = TripletLoss("hardest")(raw, golden["labels"])
    value.backward()
    close(value.detach(), golden["hard_triplet_loss"])
    close(raw.grad, golden["hard_triplet_grad"])
    contrastive = TripletLoss("hardest", form="contrastive")(raw, golden["labels"])
    close(contrastive.detach(), golden["hard_contrastive_loss"])


@pytest.mark.parametrize("kind", KINDS)
def test_dropped_samples_leave_no_trace(kind):
    rows = unit_rows(20, 5, 0).requires_grad_()
    labels = torch.arange(20) % 4
    keep = torch.rand(20, generator=torch.Generator().manual_seed(1)) < 0.6
    value = TripletLoss(kind, margin=1.0)(rows, labels, keep=keep)
    value.backward()
    assert value == TripletLoss(kind, margin=1.0)(rows[keep], labels[keep])
    assert rows.grad[keep].any()
    assert not rows.grad[~keep].any()
    assert TripletLoss(kind)(rows, labels, keep=torch.zeros(20, dtype=torch.bool)) == 0


@pytest.mark.parametrize("kind", ["random", "distance_weighted"])
def test_draws_depend_on_seed_and_step_and_survive_a_checkpoint(kind):
    rows, labels = unit_rows(40, 8, 0), torch.arange(40) % 8
    one, other = TripletLoss(kind, seed=3), TripletLoss(kind, seed=3)
    first = [float(one(rows, labels)) for _ in range(4)]
    assert len(set(first)) == 4, "every step draws anew"
    assert [float(other(rows, labels)) for _ in range(2)] == first[:2]
    resumed = TripletLoss(kind, seed=3)
    resumed.load_state_dict(other.state_dict())
    assert [float(resumed(rows, labels)) for _ in range(2)] == first[2:]
    assert float(TripletLoss(kind, seed=4)(rows, labels)) != first[0]
    before = int(resumed.steps)
    resumed.eval()(rows, labels)
    assert int(resumed.steps) == before, "validation does not shift the draws of training"


def test_half_precision_is_computed_in_full():
    rows, labels = unit_rows(12, 8, 0, torch.float32).bfloat16(), torch.arange(12) % 3
    with torch.autocast("cpu", torch.bfloat16):
        leaf = rows.clone().requires_grad_()
        value = TripletLoss("hardest", margin=1.0)(leaf, labels)
        value.backward()
    assert value.dtype == torch.float32
    assert value == TripletLoss("hardest", margin=1.0)(rows.float(), labels)
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"negatives": "hard"}, "negatives=hard must be random, hardest"),
        ({"form": "soft"}, "form=soft must be hinge or contrastive"),
        ({"margin": -0.1}, "margin=-0.1 must be a number from 0 to 2"),
        ({"reach": 2.5}, "reach=2.5"),
        ({"cutoff": 0.0}, "cutoff=0.0 must be a number above 0 and at most 2"),
    ],
)
def test_impossible_settings_are_refused_in_a_sentence(arguments, said):
    with pytest.raises(UserError, match=said):
        TripletLoss(**arguments)


def test_config_states_the_defaults_of_the_code():
    node = OmegaConf.load(ROOT / "conf" / "loss" / "triplet_sampled.yaml")
    written = instantiate(OmegaConf.create({"loss": node, "seed": 7}).loss)
    built = TripletLoss()
    for key in set(node) - {"_target_", "seed"}:
        assert getattr(written, key) == getattr(built, key), key
    assert written.seed == 7

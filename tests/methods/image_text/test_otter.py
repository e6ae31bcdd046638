"""OTTER and its baselines against the released training code, values and gradients."""

import pytest
import torch
import torch.nn.functional as F
from support import paths, vectors
from support.parts import parts_for
from support.ranks import run_ranks
from torch import nn

from noisyml.losses.image_text.contrastive import logit_scale
from noisyml.losses.image_text.otter import Sides, matching_scores
from noisyml.methods.image_text.base import Place
from noisyml.methods.image_text.otter import Otter, gathered
from noisyml.metrics.zero_shot_evaluator import ZeroShotEvaluator
from noisyml.models.ema import EMATeacher
from noisyml.optim import cosine
from noisyml.selectors.quota import PlanMass, SmallLoss

GOLDEN = paths.GOLDEN / "otter"
RELEASED_KD = {"objective": "distillation", "kd_terms": "all"}
#: Settings of the released configurations, by the names they have in the vectors.
SETTINGS = {
    "otter": {},
    "otter_keepdiag": {"remove_diagonal": False},
    "otter_coef": {"epsilon": 0.1, "n_iterations": 4, "vv_coef": 0.5, "tt_coef": 2.0},
    "otter_nocoef": {"epsilon": 0.1, "vv_coef": 0.0, "tt_coef": 0.0},
    "otter_novv": {"vv_coef": 0.0},
    "otter_ls0.1": {"smoothing": 0.1},
    "otter_ls0.2": {"smoothing": 0.2},
    "otter_clamp": {},
    "allsame": {},
    "kd": RELEASED_KD,
    "kd_T100": RELEASED_KD,
    "kd_T10": {**RELEASED_KD, "kd_scale": 10.0},
    "kd_T10_removediag": {**RELEASED_KD, "kd_scale": 10.0, "kd_remove_diagonal": True},
}


class Side(nn.Module):
    """An encoder that reads one field of a batch."""

    def __init__(self, body, field, out_features):
        super().__init__()
        self.body, self.field, self.out_features = body, field, out_features

    def forward(self, batch):
        return self.body(batch[self.field])


def otter(image=None, text=None, *, temperatures=(3.9, 3.9), selector=None, **settings):
    """The method on given networks, in double precision."""
    image = image or nn.Linear(1, 1)
    text = text or nn.Linear(1, 1)
    parts = parts_for(
        Side(image, "image", 1),
        evaluator=ZeroShotEvaluator(),
        selector=selector,
        optimizer=lambda groups: groups,
    )
    method = Otter(parts, text_encoder=lambda embedding_size: Side(text, "text", 1), **settings)
    method.double()
    method.temperature.value.data.fill_(temperatures[0])
    if method.objective in Otter.taught:
        method.distillation_temperature.value.data.fill_(temperatures[1])
    return method


def sides(case, who, rows=slice(None), grad=False):
    raw = [case[f"{who}_{side}"][rows].clone().requires_grad_(grad) for side in ("img", "txt")]
    return raw, Sides(*(F.normalize(x) for x in raw))


def check(case, name, settings, alpha=0.5, temperatures=(3.9, 3.9)):
    method = otter(temperatures=temperatures, alpha=alpha, **settings)
    raw, student = sides(case, "student", grad=True)
    _, teacher = sides(case, "teacher")
    if name == "allsame":
        teacher = Sides(teacher.image, teacher.text[:1].expand(len(teacher.text), -1))
    place = Place([len(student.image)], 0)
    targets = method.targets(teacher, teacher, place)
    vectors.close(targets.image, case[f"{name}__img_target"])
    vectors.close(targets.text, case[f"{name}__txt_target"])
    terms = method.pair_losses(student, student, teacher, teacher, place)
    total = (alpha * terms.contrastive + (1 - alpha) * terms.distillation).mean()
    total.backward()
    vectors.close(terms.contrastive.mean(), case[f"{name}__loss_contrastive"])
    vectors.close(terms.distillation.mean(), case[f"{name}__loss_distill"])
    vectors.close(total, case[f"{name}__loss_total"])
    vectors.close(raw[0].grad, case[f"{name}__grad_img"])
    vectors.close(raw[1].grad, case[f"{name}__grad_txt"])
    vectors.close(method.temperature.value.grad, case[f"{name}__grad_T_c"])
    vectors.close(method.distillation_temperature.value.grad, case[f"{name}__grad_T_s"])


def test_targets_losses_and_gradients_equal_the_released_ones():
    case = vectors.tensors(GOLDEN, "sims_targets_losses")
    _, teacher = sides(case, "teacher")
    v, t = teacher
    for name, found in (("vv", v @ v.T), ("tt", t @ t.T), ("vt", v @ t.T), ("tv", t @ v.T)):
        vectors.close(found, case[f"{name}_sim"])
    scores = matching_scores(teacher, teacher)
    vectors.close(scores.image, case["vv_sim"] + case["tt_sim"] + case["vt_sim"])
    _, student = sides(case, "student")
    vectors.close(student.image @ student.text.T, case["img_logits"])
    vectors.close(student.text @ student.image.T, case["txt_logits"])
    names = sorted({key.split("__")[0] for key in case if key.endswith("__loss_total")})
    assert len(names) == 10
    for name in names:
        temperatures = (-1.0, 6.0) if name == "otter_clamp" else (3.9, 3.9)
        check(case, name, SETTINGS[name], float(case.get(f"{name}__alpha", 0.5)), temperatures)


@pytest.mark.parametrize("name", ["otter", "otter_keepdiag", "kd", "allsame"])
def test_captions_that_repeat_equal_the_released_ones(name):
    case = vectors.tensors(GOLDEN, "duplicate_captions")
    assert len(case["caption_id"].unique()) == 4
    check(case, name, SETTINGS[name])


#: The release under DDP: no gradient through what is gathered, and pairs removed at wrong columns.
UNDER_DDP = {"gather_grad": "none", "diagonal": "released"}
RANKS = {
    "global_removediag": {},
    "global_keepdiag": {"remove_diagonal": False},
    "local_removediag": {"plan": "local"},
    "local_keepdiag": {"plan": "local", "remove_diagonal": False},
    "kd": RELEASED_KD,
    "global_ls": {"smoothing": 0.1},
}


def as_rank(case, settings, rank, sizes):
    """Losses and gradients of one rank, as its process would compute them."""
    method = otter(**settings)
    place = Place(sizes, rank)
    raw, own = sides(case, "student", place.rows, grad=True)
    _, taught = sides(case, "teacher", place.rows)
    _, all_taught = sides(case, "teacher")
    _, everyone = sides(case, "student")
    joined = Sides(
        *(
            torch.cat([other[: place.rows.start], mine, other[place.rows.stop :]])
            for other, mine in zip(everyone, own, strict=True)
        )
    )
    terms = method.pair_losses(own, joined, taught, all_taught, place)
    losses = 0.5 * terms.contrastive + 0.5 * terms.distillation
    losses.mean().backward()
    return method, terms, method.targets(taught, all_taught, place), raw


@pytest.mark.parametrize("ranks", [1, 2])
def test_each_rank_equals_the_released_one(ranks):
    case = vectors.tensors(GOLDEN, f"distributed_w{ranks}")
    assert int(case["world_size"]) == ranks
    names = sorted({key.split("__")[0] for key in case if key.endswith("__img_target")})
    assert len(names) == (2 if ranks == 1 else 6)
    sizes = [8 // ranks] * ranks
    for name in names:
        for rank in range(ranks):
            method, terms, targets, raw = as_rank(case, RANKS[name] | UNDER_DDP, rank, sizes)
            expected = {
                key.split("__")[1]: values[rank]
                for key, values in case.items()
                if key.startswith(f"{name}__")
            }
            vectors.close(targets.image, expected["img_target"])
            vectors.close(targets.text, expected["txt_target"])
            vectors.close(terms.contrastive.mean(), expected["loss_contrastive"])
            vectors.close(terms.distillation.mean(), expected["loss_distill"])
            vectors.close(raw[0].grad, expected["grad_img"])
            vectors.close(raw[1].grad, expected["grad_txt"])
            vectors.close(method.temperature.value.grad, expected["grad_T_c"])
            vectors.close(method.distillation_temperature.value.grad, expected["grad_T_s"])


def test_by_default_ranks_together_equal_one_process():
    case = vectors.tensors(GOLDEN, "distributed_w2")
    images, texts, contrastive, distillation = [], [], [], []
    for rank in range(2):
        _, terms, targets, _ = as_rank(case, {}, rank, [4, 4])
        images.append(targets.image)
        texts.append(targets.text)
        contrastive.append(terms.contrastive.mean())
        distillation.append(terms.distillation.mean())
    vectors.close(torch.cat(images), case["single_process_img_target"])
    vectors.close(torch.cat(texts), case["single_process_txt_target"])
    vectors.close(torch.stack(contrastive).mean(), case["single_process_loss_contrastive"])
    vectors.close(torch.stack(distillation).mean(), case["single_process_loss_distill"])
    raw, student = sides(case, "student", grad=True)
    _, teacher = sides(case, "teacher")
    terms = otter().pair_losses(student, student, teacher, teacher, Place([8], 0))
    (0.5 * terms.contrastive + 0.5 * terms.distillation).mean().backward()
    vectors.close(raw[0].grad, case["single_process_grad_img"])
    vectors.close(raw[1].grad, case["single_process_grad_txt"])


def _on_a_rank(rank, world, out):
    """Gradients of a rank by its own raw embeddings, gathered with gradient and without."""
    case = vectors.tensors(GOLDEN, "distributed_w2")
    found = {}
    for name, settings in {"none": UNDER_DDP, "full": {}}.items():
        method = otter(**settings)
        rows = slice(4 * rank, 4 * rank + 4)
        raw, own = sides(case, "student", rows, grad=True)
        _, taught = sides(case, "teacher", rows)
        place = method.place({"index": torch.arange(rows.start, rows.stop)})
        terms = method.pair_losses(own, gathered(own), taught, gathered(taught), place)
        losses = 0.5 * terms.contrastive + 0.5 * terms.distillation
        losses.mean().backward()
        found[name] = (losses.mean().detach(), raw[0].grad, raw[1].grad)
    torch.save(found, f"{out}/{rank}.pt")


def test_two_processes_gather_with_gradient_or_without(tmp_path):
    run_ranks(_on_a_rank, 2, tmp_path, str(tmp_path))
    case = vectors.tensors(GOLDEN, "distributed_w2")
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for rank, found in enumerate(ranks):
        loss, image, text = found["none"]
        name = "global_removediag__"
        released = [case[f"{name}loss_{term}"][rank] for term in ("contrastive", "distill")]
        vectors.close(loss, 0.5 * released[0] + 0.5 * released[1])
        vectors.close(image, case[f"{name}grad_img"][rank])
        vectors.close(text, case[f"{name}grad_txt"][rank])
    # With gradient, and averaged over the processes, it is that of one process.
    for side, name in ((1, "img"), (2, "txt")):
        whole = torch.cat([found["full"][side] for found in ranks]) / 2
        vectors.close(whole, case[f"single_process_grad_{name}"])


PLACE = Place([16], 0)


class Images(nn.Module):
    """The image network of the vectors."""

    def __init__(self):
        super().__init__()
        self.l1, self.bn, self.l2 = nn.Linear(6, 7), nn.BatchNorm1d(7), nn.Linear(7, 4)

    def forward(self, x):
        return self.l2(torch.tanh(self.bn(self.l1(x))))


class Texts(nn.Module):
    """The caption network of the vectors."""

    def __init__(self):
        super().__init__()
        self.l = nn.Linear(5, 4)

    def forward(self, x):
        return self.l(x)


@pytest.mark.parametrize("objective", ["infonce", "label_smoothing", "distillation", "otter"])
def test_mixed_precision_keeps_unit_norms_and_the_loss(objective):
    torch.manual_seed(0)
    method = otter(Images(), Texts(), objective=objective).float()
    batch = {"image": torch.randn(16, 6), "text": torch.randn(16, 5), "index": torch.arange(16)}

    def step(enabled):
        method.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            own = method.embed_sides(batch)
            terms = method.pair_losses(own, own, *[Sides(*(x.detach() for x in own))] * 2, PLACE)
        losses = terms.contrastive + (0 if terms.distillation is None else terms.distillation)
        losses.mean().backward()
        gradient = torch.cat([p.grad.flatten() for p in method.encoder.parameters()])
        return own, losses.detach(), gradient

    whole, half = step(False), step(True)
    for side, exact in zip(half[0], whole[0], strict=True):
        assert side.dtype == torch.float32
        torch.testing.assert_close(side.norm(dim=1), torch.ones(16))
        # The encoders did compute in half precision.
        assert 1e-5 < float((side - exact).detach().abs().max()) < 2e-2
    assert half[1].dtype == torch.float32
    torch.testing.assert_close(half[1].mean(), whole[1].mean(), rtol=0.02, atol=0.02)
    assert float(F.cosine_similarity(half[2], whole[2], dim=0)) > 0.99


STEPS = {
    "infonce": ({"objective": "infonce"}, 0.05),
    "kd": (RELEASED_KD, 0.05),
    "otter": ({}, 0.05),
    "otter_ls": ({"epsilon": 0.1, "n_iterations": 4, "alpha": 0.25, "smoothing": 0.1}, 0.02),
}


@pytest.mark.parametrize("name", STEPS)
def test_training_steps_equal_the_released_ones(name):
    case = vectors.tensors(GOLDEN, f"train_steps_{name}")
    settings, lr = STEPS[name]
    method = otter(Images(), Texts(), **settings)
    networks = {"image_encoder": method.encoder.body, "text_encoder": method.text_encoder.body}
    for prefix, network in networks.items():
        start = f"init__{prefix}."
        network.load_state_dict(
            {k.removeprefix(start): v for k, v in case.items() if k.startswith(start)}
        )
    if method.teacher is not None:
        method.teacher = EMATeacher(method._student())
    parameters = {
        f"{prefix}.{key}": parameter
        for prefix, network in networks.items()
        for key, parameter in network.named_parameters()
    }
    parameters["contrastive_loss.loss.T"] = method.temperature.value
    if method.teacher is not None:
        parameters = {f"student.{key}": value for key, value in parameters.items()}
        parameters["dist_loss.T_s"] = method.distillation_temperature.value
    optimizer = torch.optim.SGD(parameters.values(), lr=lr, momentum=0.9)
    for step in range(6):
        at = {k.removeprefix(f"step{step}__"): v for k, v in case.items() if f"step{step}__" in k}
        batch = {"image": at["images"], "text": at["texts"], "index": torch.arange(8)}
        found = method.training_step(batch, step)
        optimizer.zero_grad()
        found["loss"].backward()
        scale = 1.0 if method.teacher is None else method.alpha
        vectors.close(scale * found["terms"]["contrastive"], at["contrastive"])
        if method.teacher is not None:
            share = (1 - method.alpha) * found["terms"]["distillation"]
            vectors.close(share, at["distillation"])
            compare_teacher(method.teacher, at)
        for key, parameter in parameters.items():
            vectors.close(parameter.grad, at[f"grad__{key}"])
        optimizer.step()
        for key, parameter in parameters.items():
            vectors.close(parameter.detach(), at[f"param__{key}"])


def compare_teacher(teacher, at):
    modules = {"image_encoder": "encoder", "text_encoder": "text_encoder"}
    compared = 0
    for key, expected in at.items():
        prefix, _, rest = key.removeprefix("teacher__").partition(".")
        if key.startswith("teacher__") and prefix in modules:
            state = teacher.module[modules[prefix]].body.state_dict()
            vectors.close(state[rest], expected)
            compared += 1
    assert compared == 11


def test_weight_decay_spares_what_is_no_weight():
    case = {k: v.tolist() for k, v in vectors.arrays(GOLDEN, "optim_schedule").items()}
    spared = {name.split(".", 1)[1] for name in case["wd_group_no_decay"]}

    def groups(decay):
        method = otter(Images(), Texts(), decay=decay)
        names = {id(p): name for name, p in method.named_parameters()}
        ours = {"encoder.body": "image_encoder", "text_encoder.body": "text_encoder"}
        found = {}
        for group in method.optimizer_groups():
            named = [names[id(p)] for p in group["params"]]
            for prefix, theirs in ours.items():
                named = [
                    n.replace(prefix, theirs, 1) if n.startswith(f"{prefix}.") else n for n in named
                ]
            found[group["name"]] = set(named)
        return found

    temperatures = {"temperature.value", "distillation_temperature.value"}
    released = groups("released")
    assert released["default_no_decay"] == spared
    assert temperatures <= released["default"]
    assert len(released["default"]) == len(case["wd_group_decay"])
    assert groups("weights")["default_no_decay"] == spared | temperatures
    assert len(groups("all")["default"]) == len(case["wd0_params"])

    parameter = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([parameter], lr=3e-3)
    schedule, rates = cosine(optimizer, total_steps=10), []
    for _ in case["lr_per_epoch"]:
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    vectors.close(torch.tensor(rates).double(), torch.tensor(case["lr_per_epoch"]).double())


@pytest.mark.parametrize("kind", [SmallLoss, PlanMass])
def test_a_selector_of_pairs_finds_the_wrong_one_and_leaves_it_out(kind):
    torch.manual_seed(0)
    vectors_ = torch.randn(8, 16).double()
    batch = {"image": vectors_, "text": vectors_.clone(), "index": torch.arange(8) + 3}
    batch["text"][[2, 5]] = batch["text"][[5, 2]]
    plain = otter(nn.Identity(), nn.Identity(), selector=kind(0.25))
    plain.teacher = None
    plain.objective = "infonce"
    found = plain.training_step(batch, 0)
    assert found["selection"].keep.logical_not().nonzero().flatten().tolist() == [2, 5]
    p_clean = found["selection"].p_clean
    assert (p_clean >= 0).all()
    assert (p_clean <= 1).all()
    assert p_clean[[2, 5]].max() < 0.1 < 0.9 < p_clean[[0, 1, 3, 4, 6, 7]].min()
    left = [0, 1, 3, 4, 6, 7]
    unit = F.normalize(vectors_), F.normalize(batch["text"])
    logits = logit_scale(torch.tensor(3.9).double()) * unit[0] @ unit[1].T
    expected = F.cross_entropy(logits, torch.arange(8), reduction="none")
    expected = expected + F.cross_entropy(logits.T, torch.arange(8), reduction="none")
    torch.testing.assert_close(found["loss"].detach(), expected[left].mean())

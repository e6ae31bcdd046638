"""One step of a classifier, with and without a teacher: what teaches, and what is kept."""

import copy

import pytest
import torch
import torch.nn.functional as F
from support.parts import parts_for
from torch import nn

from noisyml.errors import UserError
from noisyml.losses.classification.base import GeneralisedCrossEntropy, generalised_cross_entropy
from noisyml.losses.distillation.classical import DistillationSum, Features, HintonDistillation
from noisyml.losses.distillation.relational import RKDDistance
from noisyml.methods.checkpoints import load_classifier
from noisyml.methods.classification.base import Classification, kept_mean
from noisyml.methods.classification.rkd import RKDClassification
from noisyml.metrics.retrieval_evaluator import RetrievalEvaluator
from noisyml.models.backbones.small import mlp, small_cnn
from noisyml.models.encoder import Encoder
from noisyml.models.heads import IdentityHead
from noisyml.models.teacher import Teacher
from noisyml.selectors.base import Facts, Selection, Selector

NAMES = ["ant", "bee", "cat"]
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
KEEP = [True, False, True, True, False, False]


class Fixed(Selector):
    """Keeps what it is told and notes what it was shown."""

    def __init__(self, keep=(True,) * 6):
        super().__init__()
        self.keep = torch.tensor(keep)
        self.updates = 0

    def select(self, evidence):
        self.evidence = evidence
        return Selection(self.keep, self.keep.float())

    def update(self, evidence, selection):
        assert evidence is self.evidence
        self.updates += 1


def encoder(width=16):
    backbone = mlp(image_size=4, hidden_features=[width])
    return Encoder(backbone, IdentityHead(backbone.out_features))


def classification(keep=(True,) * 6, evaluator=None, names=NAMES):
    torch.manual_seed(0)
    return Classification(parts_for(encoder(), names, selector=Fixed(keep), evaluator=evaluator))


def batch():
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (6, 1, 4, 4), generator=generator, dtype=torch.uint8)
    return {"image": image, "label": LABELS, "index": torch.arange(6) + 40}


def gradients(method):
    return {name: p.grad for name, p in method.named_parameters() if p.grad is not None}


# -- the plain classifier ----------------------------------------------------------------------


def test_without_a_selector_labels_are_judged_by_their_own_margin():
    method = Classification(parts_for(encoder(), NAMES))
    seen = method.classify_globally(batch())
    selection = method.judge(seen, method.sample_loss(seen))
    assert selection.keep.all()
    probabilities = seen.logits.softmax(dim=1)
    own = probabilities[torch.arange(6), LABELS]
    facts = method.outcome(seen.logits.sum(), selection, seen.index)["facts"]
    noted = Facts.columns([facts])
    torch.testing.assert_close(noted["p_clean"], own.detach())
    torch.testing.assert_close(noted["log_odds"], torch.logit(own).detach(), rtol=1e-4, atol=1e-5)
    assert not noted["p_clean"].requires_grad
    # A selector that scores has the word.
    assert method_with_selector_scores().tolist() == [1.0, 0.0, 1.0, 1.0, 0.0, 0.0]


def method_with_selector_scores():
    method = classification(KEEP)
    seen = method.classify_globally(batch())
    return method.judge(seen, method.sample_loss(seen)).p_clean


@pytest.mark.parametrize("keep", [KEEP, [True] * 6])
def test_the_kept_alone_teach_by_their_mean_cross_entropy(keep):
    method = classification(keep)
    outcome = method.training_step(batch(), 0)
    outcome["loss"].backward()
    assert torch.equal(outcome["index"], torch.arange(6) + 40)
    assert torch.equal(outcome["selection"].keep, torch.tensor(keep))

    alone = copy.deepcopy(method)
    alone.zero_grad()
    kept = {name: rows[torch.tensor(keep)] for name, rows in batch().items()}
    logits = alone.classifier(alone.encoder(kept))
    expected = F.cross_entropy(logits, kept["label"])
    expected.backward()
    torch.testing.assert_close(outcome["loss"], expected)
    assert (
        gradients(method).keys()
        == gradients(alone).keys()
        == dict(method.named_parameters()).keys()
    )
    for name, gradient in gradients(alone).items():
        torch.testing.assert_close(gradients(method)[name], gradient, rtol=1e-4, atol=1e-7)


def test_nothing_kept_is_a_loss_of_zero_with_a_gradient_of_zero():
    method = classification([False] * 6)
    loss = method.training_step(batch(), 0)["loss"]
    loss.backward()
    assert loss.item() == 0.0
    assert gradients(method).keys() == dict(method.named_parameters()).keys()
    assert all((gradient == 0).all() for gradient in gradients(method).values())


def test_a_batch_of_which_nothing_is_kept_may_teach_as_a_whole():
    method = classification([False] * 6)
    method.on_empty = "keep_all"
    outcome = method.training_step(batch(), 0)
    everything = classification().training_step(batch(), 0)
    torch.testing.assert_close(outcome["loss"], everything["loss"])
    assert not outcome["selection"].keep.any()
    method.selector.keep = torch.tensor(KEEP)
    partly = classification(KEEP).training_step(batch(), 0)
    torch.testing.assert_close(method.training_step(batch(), 0)["loss"], partly["loss"])


def test_any_loss_per_sample_takes_the_place_of_cross_entropy():
    method = classification(KEEP)
    method.loss = GeneralisedCrossEntropy(q=0.5)
    loss = method.training_step(batch(), 0)["loss"]
    logits = method.outputs(batch(), {"logits"})["logits"]
    expected = generalised_cross_entropy(logits, LABELS, 0.5)
    torch.testing.assert_close(loss, expected[torch.tensor(KEEP)].mean())
    torch.testing.assert_close(method.selector.evidence.sample_loss, expected.detach())


def test_a_sample_left_out_cannot_spoil_the_mean():
    losses = torch.tensor([1.0, torch.inf, 3.0], requires_grad=True)
    mean = kept_mean(losses, torch.tensor([True, False, True]))
    mean.backward()
    assert float(mean.detach()) == 2.0
    assert losses.grad.tolist() == [0.5, 0.0, 0.5]


def test_a_selector_is_shown_all_that_is_promised_and_no_gradient():
    method = classification()
    method.training_step(batch(), 0)
    evidence = method.selector.evidence
    embeddings = method.encoder(batch())
    logits = method.classifier(embeddings)
    expected = {
        "embeddings": F.normalize(embeddings),
        "proxies": F.normalize(method.classifier.weight),
        "logits": logits,
        "sample_loss": F.cross_entropy(logits, LABELS, reduction="none"),
    }
    assert expected.keys() == Classification.evidence
    for name, value in expected.items():
        shown = getattr(evidence, name)
        assert not shown.requires_grad
        torch.testing.assert_close(shown, value.detach())
    assert torch.equal(evidence.labels, LABELS)
    method.on_after_backward()
    method.on_after_backward()
    assert method.selector.updates == 1


def test_scores_are_single_precision_under_autocast():
    method = classification()
    with torch.autocast("cpu", torch.bfloat16):
        seen = method.classify_globally(batch())
        assert method.classifier(seen.embeddings).dtype == torch.bfloat16
    assert seen.logits.dtype == torch.float32


def test_an_evaluator_is_given_embeddings_and_scores():
    method = classification().eval()
    outputs = method.outputs(batch(), {"embeddings", "logits"})
    assert torch.equal(outputs["embeddings"], method.embed(batch()))
    assert torch.equal(outputs["logits"], method.classifier(outputs["embeddings"]))
    assert method.outputs(batch(), {"embeddings"}).keys() == {"embeddings"}


# -- checkpoints -------------------------------------------------------------------------------


def save(method, file):
    checkpoint = {"state_dict": dict(method.state_dict())}
    method.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, file)
    return checkpoint


def test_evaluation_takes_encoder_and_classifier(tmp_path):
    trained = classification()
    nn.init.normal_(trained.classifier.weight)
    save(trained, tmp_path / "last.ckpt")
    fresh = classification()
    assert not torch.equal(fresh.classifier.weight, trained.classifier.weight)
    fresh.load_trained(tmp_path / "last.ckpt")
    expected = trained.eval().outputs(batch(), trained.gives)
    found = fresh.eval().outputs(batch(), fresh.gives)
    assert all(torch.equal(found[name], expected[name]) for name in trained.gives)


def test_other_classes_are_refused_unless_only_embeddings_are_evaluated(tmp_path):
    save(classification(), tmp_path / "last.ckpt")
    for names in (["ant", "bee"], ["bee", "ant", "cat"]):
        with pytest.raises(UserError, match=r"3 classes \('ant', 'bee', 'cat'\), but the data has"):
            classification(names=names).load_trained(tmp_path / "last.ckpt")
    other = classification(evaluator=RetrievalEvaluator(), names=["ant", "bee"])
    other.load_trained(tmp_path / "last.ckpt")
    assert other.classifier.out_features == 2


def test_an_encoder_alone_is_no_classifier(tmp_path):
    state = {f"encoder.{name}": tensor for name, tensor in encoder().state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "last.ckpt")
    with pytest.raises(UserError, match="without a classifier"):
        load_classifier(tmp_path / "last.ckpt", NAMES)


# -- with a teacher ----------------------------------------------------------------------------


def teacher():
    torch.manual_seed(1)
    network = encoder(24)
    return Teacher(network, nn.Linear(network.out_features, len(NAMES)))


def hand_over(made):
    """A teacher that is there already, as a method asks for it."""

    def made_for(student, class_names):
        return made

    return made_for


def student(terms, weights, keep=(True,) * 6, taught_by=None, **settings):
    torch.manual_seed(0)
    return RKDClassification(
        parts_for(encoder(), NAMES, selector=Fixed(keep)),
        distillation=DistillationSum(terms, weights),
        teacher=hand_over(taught_by or teacher()),
        **settings,
    )


BOTH = {"distance": RKDDistance(), "hinton": HintonDistillation(4.0)}
WEIGHTS = {"distance": 25.0, "hinton": 16.0}


@pytest.mark.parametrize("kept_only", [False, True])
def test_a_student_follows_labels_and_teacher(kept_only):
    method = student(BOTH, WEIGHTS, KEEP, task_weight=0.5, distill_kept_only=kept_only)
    before = method.teacher.fingerprint()
    loss = method.training_step(batch(), 0)["loss"]
    loss.backward()

    embeddings = method.encoder(batch())
    logits = method.classifier(embeddings)
    lesson = method.teacher.encoder(batch())
    scores = method.teacher.classifier(lesson)
    keep = torch.tensor(KEEP)
    seen = keep if kept_only else torch.ones(6, dtype=torch.bool)
    mine = Features(embeddings[seen], logits[seen])
    theirs = Features(lesson[seen], scores[seen])
    expected = (
        25.0 * BOTH["distance"](mine, theirs)
        + 16.0 * BOTH["hinton"](mine, theirs)
        + 0.5 * F.cross_entropy(logits[keep], LABELS[keep])
    )
    torch.testing.assert_close(loss, expected)
    assert not any(name.startswith("teacher.") for name in gradients(method))
    assert gradients(method)["classifier.weight"].abs().sum() > 0
    assert method.teacher.fingerprint() == before


def test_feature_maps_are_compared_where_a_loss_reads_them():
    from noisyml.losses.distillation.classical import AttentionTransfer

    def network(seed):
        torch.manual_seed(seed)
        backbone = small_cnn(widths=(4, 8))
        return Encoder(backbone, IdentityHead(backbone.out_features))

    pupil = RKDClassification(
        parts_for(network(0), NAMES, selector=Fixed()),
        distillation=DistillationSum({"attention": AttentionTransfer(["block1", "block2"])}),
        teacher=hand_over(Teacher(network(1))),
    )
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (6, 1, 16, 16), generator=generator, dtype=torch.uint8)
    given = batch() | {"image": image}
    # Batch norm keeps statistics: take the expectation from copies that have seen as much.
    like = copy.deepcopy(pupil)
    loss = pupil.training_step(given, 0)["loss"]
    mine, theirs = like.encoder.encode(given), like.teacher.encoder.encode(given)
    term = AttentionTransfer(["block1", "block2"])
    expected = F.cross_entropy(like.classifier(mine.embeddings), LABELS) + term(
        Features(maps=mine.maps), Features(maps=theirs.maps)
    )
    torch.testing.assert_close(loss, expected)


def test_cross_entropy_may_be_left_out_only_if_scores_are_distilled():
    alone = {"distance": RKDDistance()}
    with pytest.raises(UserError, match=r"method\.task_weight=0"):
        student(alone, {}, task_weight=0.0)
    method = student(BOTH, WEIGHTS, task_weight=0.0)
    loss = method.training_step(batch(), 0)["loss"]
    again = student(BOTH, WEIGHTS, task_weight=0.0)
    shuffled = batch() | {"label": LABELS.flip(0)}
    assert torch.equal(again.training_step(shuffled, 0)["loss"], loss)


def test_checkpoints_hold_the_student_and_know_the_teacher(tmp_path):
    method = student(BOTH, WEIGHTS)
    complete = set(method.state_dict())
    saved = save(method, tmp_path / "last.ckpt")
    assert not any(name.startswith("teacher.") for name in saved["state_dict"])
    assert saved["class_names"] == NAMES
    again = student(BOTH, WEIGHTS)
    again.on_load_checkpoint(saved)
    assert set(saved["state_dict"]) == complete

    impostor = teacher()
    impostor.classifier.bias += 1.0
    saved = save(method, tmp_path / "last.ckpt")
    with pytest.raises(UserError, match="The teacher has changed"):
        student(BOTH, WEIGHTS, taught_by=impostor).on_load_checkpoint(saved)


def test_a_teacher_without_a_classifier_gives_no_scores():
    mute = Teacher(encoder(24))
    with pytest.raises(ValueError, match="no classifier"):
        mute.logits(torch.zeros(2, 24))

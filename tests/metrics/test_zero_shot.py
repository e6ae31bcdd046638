"""Flat hits and nearest prompts against the released evaluation."""

import pytest
import torch
from support import paths, vectors

from noisyml.errors import UserError
from noisyml.metrics import zero_shot
from noisyml.metrics.zero_shot import PromptBank, flat_hits, prompts

GOLDEN = paths.GOLDEN / "otter"


def test_flat_hits_equal_the_released_counts():
    case = vectors.tensors(GOLDEN, "fh_at_k")
    hits = flat_hits(case["pred"], case["targets"], case["Ks"].tolist()).double()
    vectors.close(hits.mean(0), case["final"])
    seen = case["batch_sizes"].cumsum(0).tolist()
    running = torch.stack([hits[:n].mean(0) for n in seen])
    vectors.close(running, case["running_avg"])
    edge = flat_hits(case["edge_pred"], case["edge_targets"], case["edge_Ks"].tolist())
    vectors.close(edge.double().mean(0), case["edge_values"])


def test_neighbours_and_flat_hits_of_a_class_bank_equal_the_released_ones():
    case = vectors.tensors(GOLDEN, "zero_shot_knn")
    bank = PromptBank.of(case["class_bank"], torch.arange(25))
    images = torch.nn.functional.normalize(case["image_emb"])
    nearest, scores = bank.nearest(images, 10)
    assert torch.equal(nearest, case["neighbours10"])
    assert (scores[:, :-1] >= scores[:, 1:]).all()
    hits = flat_hits(nearest, case["targets"], case["Ks"].tolist()).double()
    vectors.close(hits.mean(0), case["fh"])


def test_prompts_count_each_for_itself_as_released_or_once_for_their_class():
    case = vectors.tensors(GOLDEN, "zero_shot_knn")
    images = torch.nn.functional.normalize(case["image_emb"][:10])
    bank, label = case["tmpl_bank"], case["tmpl_label"]
    released, _ = PromptBank.of(bank, label, "none").nearest(images, 5)
    assert torch.equal(released, case["tmpl_neighbour_classes"])
    assert torch.equal(released, label[case["tmpl_neighbour_rows"]])
    merged = PromptBank.of(bank, label, "max")
    nearest, scores = merged.nearest(images, 5)
    assert torch.equal(nearest[:, 0], case["tmpl_top1"])
    assert all(len(set(row)) == 5 for row in nearest.tolist())
    torch.testing.assert_close(scores[:, 0], merged.scores(images).amax(1))
    mean = PromptBank.of(bank, label, "mean")
    unit = torch.nn.functional.normalize(bank)
    by_class = torch.stack([unit[label == c].mean(0) for c in range(6)])
    torch.testing.assert_close(
        mean.scores(images), images @ torch.nn.functional.normalize(by_class).T
    )


def test_equal_scores_go_to_the_lower_class():
    bank = PromptBank.of(torch.eye(2)[[0, 1, 0, 0]], torch.arange(4))
    nearest, _ = bank.nearest(torch.tensor([[1.0, 0.0]]), 4)
    assert nearest.tolist() == [[0, 2, 3, 1]]


def test_prompts_equal_the_released_ones():
    case = vectors.arrays(GOLDEN, "text_formatting")
    names = case["imagenet_names"].tolist()
    texts, label = prompts(names)
    assert texts == case["prompts_simple"].tolist()
    assert label.tolist() == case["prompts_simple_label"].tolist()
    # A NumPy text is one name, not a list of letters.
    assert prompts(list(case["imagenet_names"]))[0] == texts
    texts, label = prompts([["dog", "hound"], "cat"], ["a photo of {}.", "a sketch of the {}."])
    assert texts == case["prompts_multi"].tolist()
    assert label.tolist() == case["prompts_multi_label"].tolist()
    with pytest.raises(UserError, match=r"has no \{\}"):
        prompts(["a"], ["photo"])
    with pytest.raises(UserError, match="at least"):
        prompts([])


def test_means_of_many_prompts_are_the_same_however_many_are_embedded_at_once(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    rows = {}
    most = 0

    def embed(texts):
        nonlocal most
        most = max(most, len(texts))
        found = [rows.setdefault(text, torch.randn(6, generator=generator)) for text in texts]
        return torch.stack(found)

    names, templates = [f"class {i}" for i in range(11)], ["a {}", "the {}", "{}", "one {}"]
    whole = PromptBank.embed(names, templates, embed)
    assert most == 44
    most = 0
    monkeypatch.setattr(zero_shot, "PROMPTS_AT_ONCE", 9)
    pieces = PromptBank.embed(names, templates, embed)
    assert most == 8
    assert torch.equal(whole.embeddings, pieces.embeddings)
    assert torch.equal(whole.classes, pieces.classes)
    for ensemble, kept in (("mean", 11), ("max", 44), ("none", 44)):
        assert len(PromptBank.embed(names, templates, embed, ensemble).embeddings) == kept


@pytest.mark.parametrize("ensemble", ["mean", "max"])
def test_some_of_the_classes_keep_their_numbers(ensemble):
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.nn.functional.normalize(torch.randn(12, 5, generator=generator))
    bank = PromptBank.of(embeddings, torch.arange(6).repeat_interleave(2), ensemble)
    images = torch.nn.functional.normalize(torch.randn(7, 5, generator=generator))
    chosen = torch.tensor([1, 3, 4])
    nearest, scores = bank.among(chosen).nearest(images, 9)
    assert nearest.shape == scores.shape == (7, 3)
    everything = bank.scores(images)[:, chosen]
    torch.testing.assert_close(scores, everything.sort(1, descending=True).values)
    assert torch.equal(nearest, chosen[everything.argsort(1, descending=True)])

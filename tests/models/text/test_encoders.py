"""Text encoders: tokens learnt from captions, frozen networks, MiniLM from its package."""

import numpy as np
import pytest
import torch
from support import paths, vectors

from noisyml.checks import ArgumentError
from noisyml.errors import UserError
from noisyml.models.text.hub import MINILM_PACKAGE, hub_encoder, minilm
from noisyml.models.text.transformer import caption_transformer
from noisyml.targets import PAIRS

TEXTS = ["Latin small letter e with acute", "digit one", "a letter that nobody has seen: 日"]


def small(**settings):
    torch.manual_seed(0)
    encoder = caption_transformer(8, width=16, layers=1, vocab_size=60, **settings)
    encoder.tokenizer.learn(TEXTS[:2])
    return encoder.eval()


def test_tokens_do_not_depend_on_the_order_of_captions_and_travel_as_text():
    one, other = small(), small()
    other.tokenizer.learn(TEXTS[1::-1])
    assert one.tokenizer.state() == other.tokenizer.state()
    again = caption_transformer(8, width=16, layers=1, vocab_size=60)
    assert not again.tokenizer.ready
    again.tokenizer.restore(one.tokenizer.state())
    for mine, theirs in zip(one.tokenizer(TEXTS), again.tokenizer(TEXTS), strict=True):
        assert torch.equal(mine, theirs)
    lower, upper = one.tokenizer(["DIGIT ONE"]), one.tokenizer(["digit one"])
    assert torch.equal(lower[0], upper[0])


def test_padding_and_company_do_not_change_an_embedding():
    encoder = small()
    together = encoder(encoder.fields(TEXTS))
    assert together.shape == (3, 8)
    for row, text in zip(together, TEXTS, strict=True):
        torch.testing.assert_close(encoder(encoder.fields([text]))[0], row)
    captions = {"caption": PAIRS.tensor(np.array(TEXTS, dtype=object))}
    torch.testing.assert_close(encoder(captions), together)
    assert encoder(encoder.fields([])).shape == (0, 8)
    cut = small(max_tokens=3)
    assert cut.fields(TEXTS)["tokens"].shape[1] == 3


def test_settings_are_checked(tmp_path):
    with pytest.raises(UserError, match="width=10 cannot be divided among"):
        caption_transformer(8, width=10)
    with pytest.raises(ArgumentError, match="vocab_size=2"):
        caption_transformer(8, vocab_size=2)
    with pytest.raises(UserError, match="cannot be had"):
        hub_encoder(8, model=str(tmp_path))


@pytest.fixture(scope="module")
def pretrained():
    pytest.importorskip("transformers")
    pytest.importorskip(MINILM_PACKAGE)
    torch.manual_seed(0)
    return minilm(16)


@pytest.mark.long
def test_minilm_equals_its_reference(pretrained):
    golden = vectors.tensors(paths.GOLDEN / "otter", "pretrained_encoders")
    texts = vectors.arrays(paths.GOLDEN / "otter", "pretrained_encoders")["sentences"].tolist()
    ids, mask = pretrained.tokenizer(texts)
    assert torch.equal(ids, golden["input_ids"])
    assert torch.equal(mask, golden["attention_mask"])
    pooled = pretrained.fields(texts)["text_features"]
    vectors.close(pooled, golden["minilm_pooled"], rtol=0, atol=1e-4)
    unit = torch.nn.functional.normalize(pooled)
    vectors.close(unit @ unit.T, golden["minilm_cosine"], rtol=0, atol=1e-4)


def test_states_of_a_frozen_network_are_computed_once_and_kept(pretrained, tmp_path, monkeypatch):
    assert not any(p.requires_grad for p in pretrained.body.parameters())
    pretrained.train()
    assert not pretrained.body.training
    expected = pretrained.fields(TEXTS)["text_features"]
    fresh = minilm(16)
    fresh.remember(TEXTS, tmp_path)
    files = list((tmp_path / "texts").glob("*.npy"))
    assert len(files) == 1
    again = minilm(16)
    monkeypatch.setattr(again.body, "forward", None)
    again.remember([*TEXTS, *TEXTS], tmp_path)
    torch.testing.assert_close(again.fields(TEXTS[::-1])["text_features"], expected.flip(0))
    with pytest.raises(UserError, match="nothing of it can be trained"):
        minilm(384, projection="auto")

"""What is judged and remembered has length 1 under autocast, whatever the method."""

from types import SimpleNamespace

import pytest
import torch

from noisyml.methods.metric_learning import iaa, proxynca_pp, rkd


class Judged(Exception):
    """Carries the embeddings that a step hands to its selector."""


def judge(unit, labels, index):
    raise Judged(unit)


def half(batch):
    return torch.nn.functional.linear(batch["image"], torch.ones(7, 5).tril())


METHOD = SimpleNamespace(
    judge=judge,
    labels_of=lambda batch: batch["label"],
    encoder=SimpleNamespace(raw=half),
    embed_globally=lambda batch: (half(batch), batch["label"], batch["index"]),
    student_features=lambda batch: SimpleNamespace(need_embedding=lambda: half(batch)),
    teacher_features=lambda batch: None,
)


@pytest.mark.parametrize("method", [iaa.IAA, proxynca_pp.ProxyNCAPP, rkd.RKD])
def test_embeddings_judged_under_autocast_have_unit_norm(method):
    rows = torch.randn(32, 5, generator=torch.Generator().manual_seed(0))
    batch = {"image": rows, "label": torch.arange(32), "index": torch.arange(32)}
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(Judged) as caught:
        method.training_step(METHOD, batch, 0)
    norms = caught.value.args[0].double().norm(dim=1)
    assert (norms - 1).abs().max() < 1e-6

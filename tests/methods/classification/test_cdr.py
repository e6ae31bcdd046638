"""CDR: which weights follow the gradient, by how much."""

import pytest
import torch
import torch.nn.functional as F
from support.parts import parts_for
from torch import nn

from noisyml.errors import UserError
from noisyml.methods.classification.cdr import CDR, keep_critical_gradients
from noisyml.models.backbones.small import small_cnn
from noisyml.models.encoder import Encoder
from noisyml.models.heads import IdentityHead


def cdr(**settings):
    torch.manual_seed(0)
    backbone = small_cnn(widths=(4, 8))
    parts = parts_for(Encoder(backbone, IdentityHead(backbone.out_features)))
    return CDR(parts, **{"noise_rate": 0.4, **settings})


def batch():
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (6, 1, 16, 16), generator=generator, dtype=torch.uint8)
    return {"image": image, "label": torch.arange(6) % 3, "index": torch.arange(6)}


def test_the_most_critical_weights_of_the_whole_network_keep_a_scaled_gradient():
    method = cdr()
    method.training_step(batch(), 0)["loss"].backward()
    before = {name: p.grad.clone() for name, p in method.named_parameters()}
    method.on_after_backward()
    large = {n: p for n, p in method.named_parameters() if p.dim() >= 2}
    saliency = torch.cat([(before[n] * p).abs().flatten() for n, p in large.items()])
    number = int(0.6 * len(saliency))
    critical = saliency >= saliency.sort(descending=True).values[number - 1]
    found = torch.cat([p.grad.flatten() for p in large.values()])
    given = torch.cat([before[n].flatten() for n in large])
    torch.testing.assert_close(found, torch.where(critical, 0.6 * given, 0.0))
    assert int((found != 0).sum()) == number
    for name, p in method.named_parameters():
        if p.dim() < 2:
            assert torch.equal(p.grad, before[name])


def test_others_only_decay():
    weight = nn.Parameter(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    bias, frozen = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(2, 2))
    loss = (weight * torch.tensor([[1.0, 1.0, -5.0, 0.1]])).sum() + bias.sum()
    loss.backward()
    keep_critical_gradients([weight, bias, frozen], 0.5)
    assert weight.grad.tolist() == [[0.0, 0.5, -2.5, 0.0]]
    assert bias.grad.tolist() == [1.0]
    torch.optim.SGD([weight, bias], lr=0.1, weight_decay=0.1).step()
    assert float(weight[0, 0].detach()) == pytest.approx(0.99)
    assert float(weight[0, 3].detach()) == pytest.approx(3.96)


def test_without_noise_it_is_the_plain_gradient():
    method = cdr(noise_rate=0.0)
    loss = method.training_step(batch(), 0)["loss"]
    torch.testing.assert_close(
        loss, F.cross_entropy(method.classify_globally(batch()).logits, batch()["label"])
    )
    loss.backward()
    before = [p.grad.clone() for p in method.parameters()]
    method.on_after_backward()
    assert all(torch.equal(p.grad, g) for p, g in zip(method.parameters(), before, strict=True))


def test_the_share_falls_over_the_first_epochs():
    assert [cdr().critical_share(e) for e in (0, 5)] == pytest.approx([0.6, 0.6])
    gradual = cdr(gradual_epochs=4)
    assert [gradual.critical_share(e) for e in range(6)] == pytest.approx(
        [1.0, 0.9, 0.8, 0.7, 0.6, 0.6]
    )


def test_settings_out_of_range_are_refused():
    for wrong in ({"noise_rate": 1.0}, {"gradual_epochs": -1}, {"on_empty": "stop"}):
        with pytest.raises(UserError, match=f"{next(iter(wrong))}=.* must be"):
            cdr(**wrong)

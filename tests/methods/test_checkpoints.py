"""Encoders that start from a checkpoint of another run."""

import pytest
import torch

from noisyml.errors import UserError
from noisyml.methods.checkpoints import load_encoder
from noisyml.models.backbones.small import mlp
from noisyml.models.encoder import Encoder
from noisyml.models.heads import EmbeddingHead, IdentityHead


def saved(encoder, path):
    state = {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    torch.save({"state_dict": state}, path)
    return path


def test_an_identity_head_takes_the_backbone_and_leaves_the_head_out(tmp_path):
    trained = Encoder(mlp(4, hidden_features=[6]), EmbeddingHead(6, 3))
    file = saved(trained, tmp_path / "last.ckpt")
    encoder = Encoder(mlp(4, hidden_features=[6]), IdentityHead(6))
    load_encoder(encoder, file)
    images = torch.rand(2, 1, 4, 4) * 255
    expected = trained.backbone(images)
    assert torch.equal(encoder.backbone(images), expected)


@pytest.mark.parametrize(
    "encoder",
    [
        lambda: Encoder(mlp(4, hidden_features=[7]), IdentityHead(7)),
        lambda: Encoder(mlp(4, hidden_features=[6]), EmbeddingHead(6, 4)),
    ],
)
def test_another_architecture_is_refused(tmp_path, encoder):
    file = saved(Encoder(mlp(4, hidden_features=[6]), IdentityHead(6)), tmp_path / "last.ckpt")
    with pytest.raises(UserError, match="another encoder"):
        load_encoder(encoder(), file)

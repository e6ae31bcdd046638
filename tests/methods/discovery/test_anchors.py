"""Anchors: images of a folder, and the network as it was before it had prompts."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from support.parts import parts_for
from support.vectors import close

from noisyml.errors import UserError
from noisyml.methods.discovery.anchors import Anchors, anchor_loss
from noisyml.methods.discovery.gcd import GCD
from noisyml.models.backbones.prompted import tiny_vit
from noisyml.models.encoder import Encoder
from noisyml.models.heads import IdentityHead
from noisyml.models.projection import ProjectionHead


@pytest.fixture
def folder(tmp_path):
    for number in range(5):
        path = tmp_path / f"part{number % 2}" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (20, 12), (50 * number, 10, 0)).save(path)
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def encoder():
    backbone = tiny_vit(8, in_channels=3, width=8, depth=2, heads=2, num_prompts=3, train_from=-1)
    return Encoder(backbone, IdentityHead(8))


def test_draws_are_images_of_the_folder_and_agree(folder):
    anchors = Anchors(encoder(), str(folder), batch_size=4, image_size=8, epochs=2)
    images = anchors.draw(0, 3)
    assert images.shape == (4, 3, 8, 8)
    assert images.dtype == torch.uint8
    assert torch.equal(images, anchors.draw(0, 3))
    drawn = [anchors.draw(0, step) for step in range(8)]
    assert any(not torch.equal(drawn[0], other) for other in drawn[1:])
    assert [anchors.weight(epoch) for epoch in range(3)] == [0.5, 0.255, 0.0]
    with pytest.raises(UserError, match="holds 5 images, and a step draws 6"):
        Anchors(encoder(), str(folder), batch_size=6)


def test_the_first_epochs_follow_the_network_without_prompts(folder):
    torch.manual_seed(0)
    own = encoder()
    method = GCD(
        parts_for(own),
        projection=lambda in_features: ProjectionHead(in_features, 4, 4, 2),
        prompt_weight=0.35,
        supervised_prompts=2,
        anchors=lambda encoder: Anchors(encoder, str(folder), 4, epochs=1, image_size=8),
    )
    assert not any("anchors" in name for name in method.state_dict())
    views = torch.randint(0, 255, (4, 2, 3, 8, 8), dtype=torch.uint8)
    batch = {"views": views, "label": torch.tensor([0, 0, -1, 1]), "index": torch.arange(4)}
    for epoch in range(2):
        method._trainer = SimpleNamespace(current_epoch=epoch, global_step=epoch)
        outcome = method.training_step(batch, 0)
        assert ("anchors" in outcome["terms"]) == (epoch == 0)
    images = method.anchors.draw(0, 0)
    tokens = own.backbone.tokens(images).class_token
    pretrained = method.anchors.features(images)
    assert not torch.allclose(tokens, pretrained)
    close(anchor_loss(pretrained, pretrained), torch.tensor(0.0))
    assert method.anchors.pretrained.backbone.num_prompts == 0

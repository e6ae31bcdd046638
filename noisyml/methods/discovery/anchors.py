"""Anchors: images on which a network keeps near the features it was pretrained with.

The appendix of PromptCAL tames new prompts with images of ImageNet in the first epochs. Its authors
say that it does little on larger sets and sometimes harms; it is off unless a folder is named.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from noisyml import distributed
from noisyml.checks import Checked, Count, NonNegative, WholeNonNegative
from noisyml.data.inputs import FileImages
from noisyml.data.readers.folders import IMAGE_SUFFIXES
from noisyml.data.transforms.image import ImageTransform
from noisyml.errors import UserError
from noisyml.losses.discovery.affinity import fading_weight
from noisyml.models.backbones.prompted import PromptedBackbone, without_prompts
from noisyml.models.encoder import Encoder


def anchor_loss(tokens: Tensor, pretrained: Tensor) -> Tensor:
    """Mean squared difference between unit-norm tokens [n, D] and those of the pretrained network.

    Args:
        tokens: with gradient.
        pretrained: without.
    """
    return F.mse_loss(F.normalize(tokens, dim=1), F.normalize(pretrained.detach(), dim=1))


class Anchors(Checked):
    """Images, the network as it was at first, and a weight that fades from epoch to epoch.

    The network is that of the configuration, before `init_from`; no checkpoint carries it.

    Args:
        encoder: as it is pretrained; copied, without its prompts.
        folder: of images, at any depth.
        batch_size: images of a step.
        epochs: so many epochs have the loss.
        start: its weight in the first of them.
        end: that the falling line would reach after the last.
        image_size: side in pixels.
        seed: of the draws.

    Raises:
        UserError: fewer images than a step draws.
    """

    def __init__(
        self,
        encoder: Encoder,
        folder: str,
        batch_size: Count = 128,
        epochs: WholeNonNegative = 5,
        start: NonNegative = 0.5,
        end: NonNegative = 0.01,
        image_size: Count = 224,
        seed: WholeNonNegative = 0,
    ) -> None:
        self.pretrained = copy.deepcopy(encoder)
        if isinstance(self.pretrained.backbone, PromptedBackbone):
            self.pretrained.backbone = without_prompts(self.pretrained.backbone)
        self.pretrained.requires_grad_(False).eval()
        self.batch_size, self.epochs, self.start, self.end = batch_size, epochs, start, end
        self.seed = seed
        root = Path(folder)
        paths = sorted(
            str(path.relative_to(root))
            for path in root.rglob("*")
            if path.suffix.lower() in IMAGE_SUFFIXES
        )
        if len(paths) < batch_size:
            raise UserError(
                f"method.anchors.folder={folder} holds {len(paths)} images, and a step draws "
                f"{batch_size}: name another folder, or lower method.anchors.batch_size."
            )
        self.images = FileImages(paths, str(root))
        side = image_size
        self.transform = ImageTransform(
            size=side,
            resize=round(side * 8 / 7),
            crop="centre",
            interpolation="bicubic",
            colour="rgb",
        )

    def weight(self, epoch: WholeNonNegative) -> float:
        """Weight of the loss in an epoch, see `fading_weight`."""
        return fading_weight(epoch, self.epochs, self.start, self.end)

    def draw(self, epoch: int, step: int) -> Tensor:
        """Images of a step, uint8 [n, C, H, W], the same on every rank."""
        draw = distributed.agreed_generator(self.seed, epoch, step)
        chosen = torch.randperm(len(self.images), generator=draw)[: self.batch_size]
        return torch.stack(
            [self.transform.evaluate(self.images.load(int(i))) for i in np.asarray(chosen)]
        )

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """The pretrained network's class token [n, D] of images [n, C, H, W]."""
        self.pretrained.to(images.device)
        return self.pretrained.raw({"image": images})

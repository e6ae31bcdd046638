"""Networks for small images, as the noisy-label literature uses them; all with random weights.

Numbers of parameters are those of the papers or their code once a linear classifier follows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from noisyml.checks import Count, Ge, Share, checked
from noisyml.errors import UserError
from noisyml.models.backbones.base import Backbone
from noisyml.models.pooling import Pooling, global_pooling

Block = Callable[[int, int, int], nn.Module]
#: Sides that are left with a map after all convolutions.
LeNetSize = Annotated[int, Ge(28)]
BareSize = Annotated[int, Ge(8)]
WideDepth = Annotated[int, Ge(10)]


def _convention(in_channels: Count, settings: dict[str, Any]) -> dict[str, Any]:
    """Pixels in [-1, 1] unless mean and standard deviation are given."""
    half = (0.5,) * in_channels
    return {"mean": half, "std": half, "in_channels": in_channels} | settings


@checked
def lenet(in_channels: Count = 1, image_size: LeNetSize = 28, **settings: Any) -> Backbone:
    """The LeNet-like network of bare's code: convolutions 6, 16, 120 of 5x5, then 84 features.

    With ten classes 61,706 parameters. The last map is flattened, not averaged. The release puts a
    ReLU on the class scores too, which is left out.

    Args:
        in_channels: 1 for grey, 3 for colour.
        image_size: side of the square images.
        **settings: arguments of `Backbone`.
    """
    side = (image_size // 2 - 4) // 2 - 4
    body = nn.Sequential(
        nn.Conv2d(in_channels, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 120, 5),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(120 * side**2, 84),
        nn.ReLU(),
    )
    return Backbone(body, 84, blocks=("2", "5"), pool="8", **_convention(in_channels, settings))


@checked
def bare_cnn(in_channels: Count = 3, image_size: BareSize = 32, **settings: Any) -> Backbone:
    """Four convolutions of 3x3: the CIFAR-10 network of bare (Patel, Sastry, WACV 2023).

    64, 128, 196 and 16 channels, batch norm and ReLU after each, halved after the first, second and
    fourth; the last map is flattened, not averaged. At a side of 32 with ten classes 333,254
    parameters.

    Args:
        in_channels: 1 for grey, 3 for colour.
        image_size: side of the square images.
        **settings: arguments of `Backbone`.
    """
    layers: list[nn.Module] = []
    previous = in_channels
    for width, halved in ((64, True), (128, True), (196, False), (16, True)):
        layers += [nn.Conv2d(previous, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if halved else []
        previous = width
    body = nn.Sequential(*layers, nn.Flatten())
    ends, last = ("3", "7", "14"), str(len(layers))
    features = previous * (image_size // 8) ** 2
    return Backbone(body, features, blocks=ends, pool=last, **_convention(in_channels, settings))


@checked
def nine_layer_cnn(
    in_channels: Count = 3,
    dropout: Share = 0.25,
    pooling: Pooling | nn.Module = "avg",
    **settings: Any,
) -> Backbone:
    """The nine convolutions of Co-teaching (Han et al., NeurIPS 2018): 128 features.

    3 x 128, 3 x 256, then 512, 256 and 128 channels without padding, each with batch norm and a
    leaky ReLU of slope 0.01; maximum over 2x2 and dropout of whole channels after the third and
    sixth. With ten classes 4,434,570 parameters.

    Args:
        in_channels: 1 for grey, 3 for colour.
        dropout: probability of dropping a channel, twice.
        pooling: global pooling, see `global_pooling`.
        **settings: arguments of `Backbone`.
    """
    layers: list[nn.Module] = []
    previous, ends = in_channels, []
    for widths, padding in (((128,) * 3, 1), ((256,) * 3, 1), ((512, 256, 128), 0)):
        for width in widths:
            layers += [
                nn.Conv2d(previous, width, 3, padding=padding),
                nn.BatchNorm2d(width),
                nn.LeakyReLU(0.01),
            ]
            previous = width
        ends.append(str(len(layers) - 1))
        if padding:
            layers += [nn.MaxPool2d(2), nn.Dropout2d(dropout)]
    body = nn.Sequential(*layers, global_pooling(pooling), nn.Flatten())
    convention = _convention(in_channels, settings)
    return Backbone(body, previous, blocks=ends, pool=str(len(layers)), **convention)


class _Residual(nn.Module):
    """Two convolutions with batch norm beside a shortcut, ReLU after the sum (He et al., 2016a).

    Args:
        before: channels that come in.
        width: channels that go out.
        stride: 1, or 2 to halve the side.
        projected: where the shape changes, the shortcut is a 1x1 convolution with batch norm
            (option B); else a smaller image with channels of zeros added (option A).
    """

    def __init__(self, before: int, width: int, stride: int, projected: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if before != width or stride > 1:
            self.shortcut = _ZeroPadded(width - before, stride)
            if projected:
                self.shortcut = nn.Sequential(
                    nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width)
                )

    def forward(self, x: Tensor) -> Tensor:
        """[B, before, H, W] to [B, width, H / stride, W / stride]."""
        out = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(out)) + self.shortcut(x))


class _ZeroPadded(nn.Module):
    """A shortcut without parameters: every second position, and zeros for the new channels."""

    def __init__(self, more: int, stride: int) -> None:
        super().__init__()
        self.more, self.stride = more, stride

    def forward(self, x: Tensor) -> Tensor:
        """Zeros on both sides of the channels, as in the released networks."""
        taken = x[:, :, :: self.stride, :: self.stride]
        return F.pad(taken, (0, 0, 0, 0, self.more // 2, self.more - self.more // 2))


class _PreActivated(nn.Module):
    """Batch norm and ReLU before each of two convolutions (He et al., 2016b).

    Args:
        before: channels that come in.
        width: channels that go out.
        stride: 1, or 2 to halve the side.
        dropout: probability between the convolutions (wide networks).
    """

    def __init__(self, before: int, width: int, stride: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, width, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.shortcut: nn.Conv2d | None = None
        if before != width or stride > 1:
            self.shortcut = nn.Conv2d(before, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, before, H, W] to [B, width, H / stride, W / stride]."""
        active = F.relu(self.norm1(x))
        out = self.conv2(self.dropout(F.relu(self.norm2(self.conv1(active)))))
        total: Tensor = out + (x if self.shortcut is None else self.shortcut(active))
        return total


def _residual_backbone(
    block: Block,
    in_channels: Count,
    stem: int,
    widths: Sequence[int],
    depths: Sequence[int],
    pooling: Pooling | nn.Module,
    settings: dict[str, Any],
    stem_norm: bool = False,
    end_norm: bool = False,
) -> Backbone:
    """A stem of 3x3 at full resolution and stages of blocks, each but the first halving the side.

    Args:
        block: makes one from channels before, channels after and stride.
        in_channels: 1 for grey, 3 for colour.
        stem: channels of the stem.
        widths: channels of the stages.
        depths: blocks of the stages.
        pooling: global pooling.
        settings: arguments of `Backbone`.
        stem_norm: batch norm and ReLU after the stem.
        end_norm: the same after the last stage.
    """
    body = nn.Sequential()
    body.add_module("stem", nn.Conv2d(in_channels, stem, 3, padding=1, bias=False))
    if stem_norm:
        body.add_module("stem_norm", nn.Sequential(nn.BatchNorm2d(stem), nn.ReLU()))
    before, ends = stem, []
    for number, (width, depth) in enumerate(zip(widths, depths, strict=True), start=1):
        strides = [1 if number == 1 else 2] + [1] * (depth - 1)
        stage = nn.Sequential()
        for stride in strides:
            stage.append(block(before, width, stride))
            before = width
        body.add_module(f"stage{number}", stage)
        ends.append(f"stage{number}")
    if end_norm:
        body.add_module("end_norm", nn.Sequential(nn.BatchNorm2d(before), nn.ReLU()))
    body.add_module("pool", global_pooling(pooling))
    body.add_module("flatten", nn.Flatten())
    for module in body.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    convention = _convention(in_channels, settings)
    return Backbone(body, before, blocks=ends, pool="pool", **convention)


@checked
def cifar_resnet(
    depth: Literal[18, 32, 34] = 18,
    pre_activated: bool = False,
    in_channels: Count = 3,
    pooling: Pooling | nn.Module = "avg",
    **settings: Any,
) -> Backbone:
    """ResNets for 32x32 images: a stem of 3x3 at full resolution in place of 7x7 and pooling.

    Depths 18 and 34 have the stages of ImageNet's networks (64 to 512 channels), as in the code of
    DivideMix, ELR and PLC; 32 has three stages of 16, 32 and 64 channels with shortcuts without
    parameters (He et al., CVPR 2016, section 4.2). With ten classes 11,173,962 (18), 464,154 (32)
    and 21,282,122 (34) parameters; pre-activated 11,171,146 (18).

    Args:
        depth: number of layers with weights.
        pre_activated: batch norm and ReLU before the convolutions (He et al., ECCV 2016), for
            depths 18 and 34; as in the code of DivideMix nothing follows the last sum.
        in_channels: 1 for grey, 3 for colour.
        pooling: global pooling, see `global_pooling`.
        **settings: arguments of `Backbone`.

    Raises:
        UserError: a depth that has no pre-activated form.
    """
    stages = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 32: (5, 5, 5)}
    if depth == 32 and pre_activated:
        raise UserError(
            "backbone.depth=32 has no pre-activated form: use 18 or 34 with "
            "backbone.pre_activated=true."
        )
    widths = (16, 32, 64) if depth == 32 else (64, 128, 256, 512)
    if pre_activated:
        return _residual_backbone(
            _PreActivated, in_channels, widths[0], widths, stages[depth], pooling, settings
        )

    def block(before: int, width: int, stride: int) -> nn.Module:
        return _Residual(before, width, stride, projected=depth != 32)

    return _residual_backbone(
        block, in_channels, widths[0], widths, stages[depth], pooling, settings, stem_norm=True
    )


@checked
def wide_resnet(
    depth: WideDepth = 28,
    width: Count = 10,
    dropout: Share = 0.0,
    in_channels: Count = 3,
    pooling: Pooling | nn.Module = "avg",
    **settings: Any,
) -> Backbone:
    """Wide ResNets (Zagoruyko, Komodakis, BMVC 2016): WRN-28-10 has 36,479,194 parameters.

    Args:
        depth: number of layers with weights, 4 more than a multiple of 6.
        width: factor by which 16, 32 and 64 channels are widened.
        dropout: probability between the convolutions of a block.
        in_channels: 1 for grey, 3 for colour.
        pooling: global pooling, see `global_pooling`.
        **settings: arguments of `Backbone`.

    Raises:
        UserError: no such depth.
    """
    if (depth - 4) % 6:
        raise UserError(f"backbone.depth={depth} is no depth of a wide ResNet: use 10, 16, 22, 28.")

    def block(before: int, after: int, stride: int) -> nn.Module:
        return _PreActivated(before, after, stride, dropout)

    widths = [channels * width for channels in (16, 32, 64)]
    depths = [(depth - 4) // 6] * 3
    return _residual_backbone(
        block, in_channels, 16, widths, depths, pooling, settings, end_norm=True
    )

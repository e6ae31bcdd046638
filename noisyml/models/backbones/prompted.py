"""Vision transformers with prompts: learned tokens beside the class token, in every layer.

Tokens stand in the order class token, P prompts, patches (Jia et al., "Visual Prompt Tuning", ECCV
2022; Zhang et al., "PromptCAL", CVPR 2023). A prompt has no position: its row of the position table
is zero and never trained. The prompts of the first layer are register tokens of timm's transformer,
those of the others stand before their block, so that timm's own ``forward_intermediates`` gives the
tokens of every block.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor, nn

from noisyml.checks import Count, Ge, Positive, WholeNonNegative, checked
from noisyml.errors import UserError
from noisyml.models.backbones.base import IMAGENET_MEAN, IMAGENET_STD, Backbone, FeatureMaps
from noisyml.models.weights import load_into, read_weights

#: Standard deviation of new prompts.
PROMPT_STD = 0.02


class Tokens(NamedTuple):
    """Last tokens of a transformer, after its final norm.

    Attributes:
        class_token: [B, D].
        prompts: [B, P, D].
    """

    class_token: Tensor
    prompts: Tensor


class PromptedBlock(nn.Module):
    """A transformer block that exchanges prompts for its own before it begins.

    Args:
        block: of timm.
        prompts: P - S prompts that it exchanges; the first S flow through all layers.
        first: position of the first of them among the tokens, 1 + S.
        width: D.
    """

    def __init__(self, block: nn.Module, prompts: int, first: int, width: int) -> None:
        super().__init__()
        self.block = block
        self.first = first
        self.prompts = nn.Parameter(torch.empty(1, prompts, width))
        nn.init.trunc_normal_(self.prompts, std=PROMPT_STD)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        own = self.prompts.expand(len(tokens), -1, -1).to(tokens.dtype)
        last = self.first + own.shape[1]
        exchanged: Tensor = self.block(
            torch.cat([tokens[:, : self.first], own, tokens[:, last:]], dim=1)
        )
        return exchanged


class PromptedBackbone(Backbone):
    """A transformer with prompts; its features are the class token after the final norm.

    Args:
        body: timm's transformer, its prompts in place.
        num_prompts: P.
        **settings: arguments of `Backbone`.
    """

    def __init__(self, body: Any, num_prompts: WholeNonNegative, **settings: Any) -> None:
        super().__init__(body, body.num_features, **settings)
        self.num_prompts = num_prompts

    def tokens(self, images: Tensor) -> Tokens:
        """Class token and prompts of uint8 images [B, C, H, W], in one pass, with gradient."""
        x = self.normalise(images)
        if not len(x):
            x = x.new_zeros((1, *x.shape[1:]))
        body: Any = self.body
        tokens = body.forward_features(x)[: len(images)]
        return Tokens(self.finish(tokens[:, 0]), tokens[:, 1 : 1 + self.num_prompts])

    def activations(self, images: Tensor, names: Collection[str]) -> FeatureMaps:
        """Features, and the tokens [B, T, D] that leave some blocks, before the final norm.

        Args:
            images: uint8 [B, C, H, W].
            names: ``block1`` (the first block), ``block2``, ...

        Raises:
            UserError: there is no such block.
        """
        body: Any = self.body
        known = [f"block{i}" for i in range(1, len(body.blocks) + 1)]
        if unknown := [name for name in names if name not in known]:
            raise UserError(
                f"The transformer has no layer '{unknown[0]}' to look into: it has "
                f"{known[0]} to {known[-1]}."
            )
        wanted = sorted(known.index(name) for name in names)
        x = self.normalise(images)
        last, taken = body.forward_intermediates(
            x, indices=wanted, return_prefix_tokens=True, norm=False, output_fmt="NLC"
        )
        maps = {
            known[at]: torch.cat([prefix, patches], dim=1)
            for at, (patches, prefix) in zip(wanted, taken, strict=True)
        }
        return FeatureMaps(self.finish(last[:, 0]), {name: maps[name] for name in names})


def without_prompts(backbone: PromptedBackbone) -> PromptedBackbone:
    """A copy of the transformer as it is without prompts, its other weights the same."""
    plain = copy.deepcopy(backbone)
    body: Any = plain.body
    body.blocks = nn.Sequential(
        *(block.block if isinstance(block, PromptedBlock) else block for block in body.blocks)
    )
    table = body.pos_embed.detach()
    kept = torch.cat([table[:, :1], table[:, 1 + plain.num_prompts :]], dim=1)
    body.pos_embed = nn.Parameter(kept, requires_grad=body.pos_embed.requires_grad)
    body.reg_token = None
    body.num_reg_tokens, body.num_prefix_tokens = 0, 1
    plain.num_prompts = 0
    return plain


@checked
def prompted_vit(
    name: str = "vit_base_patch16_224.dino",
    weights: str | None = "pretrained",
    sha256: str | None = None,
    num_prompts: WholeNonNegative = 5,
    num_shallow: WholeNonNegative = 0,
    train_from: int | None = -1,
    image_size: Count = 224,
    **settings: Any,
) -> Backbone:
    """A vision transformer of timm with prompts; most of it is frozen.

    Args:
        name: timm's, with the name of its weights behind a dot where there are several.
        weights: null for random, ``pretrained`` for timm's download, or a path to those of the
            plain transformer, e.g. DINO's.
        sha256: checksum of the file, or at least its first 8 digits; null: not checked.
        num_prompts: P tokens.
        num_shallow: the first of them flow through all layers; the others are exchanged in each.
        train_from: first block that trains, counted from the end if negative; prompts train too,
            everything else is frozen. null: all trains.
        image_size: side of the images in pixels.
        **settings: arguments of `Backbone`.

    Raises:
        UserError: no such model, or the weights cannot be had.
    """
    import timm

    if name.partition(".")[0] not in timm.list_models("vit_*"):
        close = timm.list_models("vit_*patch16_224")[:5]
        raise UserError(f"timm has no transformer '{name}'; some that it has: {', '.join(close)}.")
    sizes: dict[str, Any] = {"num_classes": 0, "global_pool": "token", "img_size": image_size}
    plain: dict[str, Tensor] | None = None
    if weights == "pretrained":
        try:
            plain = timm.create_model(name, pretrained=True, **sizes).state_dict()
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"timm could not fetch the weights of {name} ({error}); set backbone.weights to a "
                "file, e.g. dino_vitbase16_pretrain.pth."
            ) from error
    elif weights is not None:
        plain = read_weights(weights, sha256)
    body: Any = timm.create_model(name, pretrained=False, reg_tokens=num_prompts, **sizes)
    return _prompted(body, plain, str(weights), num_prompts, num_shallow, train_from, settings)


@checked
def tiny_vit(
    image_size: Count = 8,
    patch_size: Count = 2,
    in_channels: Count = 1,
    width: Count = 64,
    depth: Count = 4,
    heads: Count = 4,
    mlp_ratio: Positive = 2.0,
    num_prompts: WholeNonNegative = 5,
    num_shallow: WholeNonNegative = 0,
    train_from: int | None = None,
    **settings: Any,
) -> Backbone:
    """A small vision transformer with prompts, for small images; random weights.

    Args:
        image_size: side of the images in pixels, a multiple of `patch_size`.
        patch_size: side of a patch in pixels.
        in_channels: 1 for grey, 3 for colour.
        width: D, a multiple of `heads`.
        depth: blocks.
        heads: of the attention.
        mlp_ratio: hidden width of a block over D.
        num_prompts: see `prompted_vit`.
        num_shallow: see `prompted_vit`.
        train_from: see `prompted_vit`.
        **settings: arguments of `Backbone`.

    Raises:
        UserError: sizes that do not divide each other.
    """
    from timm.models.vision_transformer import VisionTransformer

    for what, whole, part in (
        ("image_size", image_size, patch_size),
        ("width", width, heads),
    ):
        if whole % part:
            raise UserError(
                f"backbone.{what}={whole} is no multiple of "
                f"{'patch_size' if what == 'image_size' else 'heads'}={part}."
            )
    body = VisionTransformer(
        img_size=image_size,
        patch_size=patch_size,
        in_chans=in_channels,
        num_classes=0,
        global_pool="token",
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        mlp_ratio=mlp_ratio,
        reg_tokens=num_prompts,
        norm_layer=_layer_norm,
    )
    half = {"in_channels": in_channels, "mean": (0.5,) * in_channels, "std": (0.5,) * in_channels}
    return _prompted(body, None, "", num_prompts, num_shallow, train_from, half | settings)


def _layer_norm(width: int, **settings: Any) -> nn.Module:
    return nn.LayerNorm(width, eps=1e-6, **settings)


#: Number of prompts of a layer.
Prompts = Annotated[int, Ge(0)]


def _prompted(
    body: Any,
    plain: dict[str, Tensor] | None,
    source: str,
    num_prompts: Prompts,
    num_shallow: Prompts,
    train_from: int | None,
    settings: dict[str, Any],
) -> PromptedBackbone:
    """The backbone around timm's transformer with P register tokens, see `prompted_vit`."""
    if num_shallow > num_prompts:
        raise UserError(
            f"backbone.num_shallow={num_shallow} exceeds backbone.num_prompts={num_prompts}."
        )
    depth = len(body.blocks)
    if train_from is not None and not -depth <= train_from < depth:
        raise UserError(
            f"backbone.train_from={train_from} is none of the {depth} blocks: give a number from "
            f"{-depth} to {depth - 1}, or null to train everything."
        )
    with torch.no_grad():
        if num_prompts:
            nn.init.trunc_normal_(body.reg_token, std=PROMPT_STD)
        body.pos_embed[:, 1 : 1 + num_prompts] = 0
    if plain is not None:
        load_into(body, _with_prompts(plain, body, num_prompts, source), source, {"reg_token"})
    exchanged = num_prompts - num_shallow
    if exchanged:
        first, width = 1 + num_shallow, body.num_features
        body.blocks = nn.Sequential(
            body.blocks[0],
            *(PromptedBlock(block, exchanged, first, width) for block in body.blocks[1:]),
        )
    if train_from is not None:
        body.requires_grad_(False)
        body.blocks[train_from:].requires_grad_(True)
        for name, parameter in body.named_parameters():
            if name == "reg_token" or name.endswith(".prompts"):
                parameter.requires_grad_(True)
    elif num_prompts:
        _without_positions(body.pos_embed, num_prompts)
    convention = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD} | settings
    return PromptedBackbone(body, num_prompts, **convention)


def _with_prompts(
    plain: dict[str, Tensor], body: Any, num_prompts: int, source: str
) -> dict[str, Tensor]:
    """Tensors of a plain transformer, and what prompts need beside them."""
    name = next((key for key in plain if ("." + key).endswith(".pos_embed")), "pos_embed")
    table = plain.get(name)
    wanted = body.pos_embed.shape[1] - num_prompts
    if table is None or table.ndim != 3 or table.shape[1] != wanted:
        found = "none" if table is None else list(table.shape)
        raise UserError(
            f"{source} has a position table of shape {found}, and this transformer has {wanted} "
            "positions: use the weights of the same network, and backbone.image_size as they want."
        )
    nothing = table.new_zeros(1, num_prompts, table.shape[2])
    return {**plain, name: torch.cat([table[:, :1], nothing, table[:, 1:]], dim=1)}


def _without_positions(table: nn.Parameter, num_prompts: int) -> None:
    """Keep the rows of the prompts at zero while the others train."""
    kept = torch.ones(1, table.shape[1], 1)
    kept[:, 1 : 1 + num_prompts] = 0
    table.register_hook(lambda gradient: gradient * kept.to(gradient))

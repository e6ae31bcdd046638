"""ProxyNCA++ and its predecessor: a softmax over squared distances to one proxy per class.

Teh, DeVries and Taylor, "ProxyNCA++: Revisiting and Revitalizing Proxy Neighborhood Component
Analysis", ECCV 2020 (arXiv 2004.01113), with the constants of the released code; the predecessor is
Movshovitz-Attias et al., "No Fuss Distance Metric Learning using Proxies", ICCV 2017 (arXiv
1703.07464).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noisyml.checks import Count, Ge, Positive
from noisyml.errors import UserError
from noisyml.losses.base import EmbeddingLoss
from noisyml.losses.second_order import recorded_gradient
from noisyml.similarity.memory_bank import MemoryBank

#: Proxies in the denominator of a sample's softmax.
Denominator = Literal["all", "negatives"]

#: Norms below this count as this much (released code).
_SMALLEST_NORM = 1e-12


def proxynca_pp_loss(
    embeddings: Tensor,
    labels: Tensor,
    proxies: Tensor,
    *,
    scale: float = 3.0,
    denominator: Denominator = "all",
    block_bytes: int = 2**28,
) -> Tensor:
    """Mean over samples of the softmax cross-entropy over negated squared distances to the proxies.

    With both sides brought to norm s, the squared distance is 2 s^2 (1 - cos) and the constant
    cancels, so the logits are 2 s^2 cos: one [B, D] x [D, C] product. A proxy too short to be
    brought to norm s (below 1e-12) is nearer to everything: its logits gain s^2 (1 - |n(p)|^2). No
    normalised copy of the proxies is made.

    Args:
        embeddings: [B, D] float of any norm; computed in float32 at least.
        labels: [B] int64 in 0..C-1.
        proxies: [C, D] float of any norm; every one receives a gradient.
        scale: s, the norm; the temperature is T = 1 / s^2.
        denominator: ``all`` proxies (ProxyNCA++) or the ``negatives`` alone (ProxyNCA; the loss is
            then unbounded below).
        block_bytes: bound on the logits [B, C] held at a time, in bytes; where they exceed it they
            are computed in blocks of classes, and once more for the gradient.

    Returns:
        Scalar, 0 for an empty batch. A graph of its gradient (``create_graph=True``) holds all
        logits.

    Raises:
        UserError: a label outside 0..C-1 (on an accelerator, where reading it would stall every
            step, a device-side assertion instead).

    Example:
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
        >>> proxies = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> proxynca_pp_loss(embeddings, torch.tensor([0, 0, 1]), proxies).round(decimals=4)
        tensor(1.2090)
    """
    return _mean_and_each(embeddings, labels, proxies, scale, denominator, block_bytes)[0]


def _mean_and_each(
    embeddings: Tensor,
    labels: Tensor,
    proxies: Tensor,
    scale: float,
    denominator: Denominator,
    block_bytes: int,
) -> tuple[Tensor, Tensor]:
    """`proxynca_pp_loss`, and the losses [B], without gradient, of which it is the mean."""
    _check_labels(labels, len(proxies))
    with torch.autocast(embeddings.device.type, enabled=False):
        dtype = torch.promote_types(embeddings.dtype, torch.float32)
        rows = F.normalize(embeddings.to(dtype), dim=1, eps=_SMALLEST_NORM)
        total, each = _ProxySoftmax.apply(
            rows,
            proxies.to(dtype),
            labels,
            2 * scale**2,
            denominator == "negatives",
            _classes_at_once(rows, block_bytes),
        )
        return total / max(1, len(rows)), each


class ProxyNCAPPLoss(EmbeddingLoss):
    """ProxyNCA++ on the kept samples of a batch; owns the proxies. See `proxynca_pp_loss`.

    The proxies want a learning rate of their own, far above the network's.

    Args:
        num_classes: C, at least 2.
        embedding_size: D.
        scale: s, the norm embeddings and proxies are brought to; None if `temperature` is given.
        temperature: T = 1 / s^2, in place of `scale`.
        proxy_init_std: standard deviation of the proxies' entries at the start.
        denominator: ``all`` (ProxyNCA++) or ``negatives`` (ProxyNCA).
        block_bytes: bound on the logits held at a time, in bytes.

    Raises:
        ArgumentError: a value out of range.
        UserError: not exactly one of scale and temperature.

    Example:
        >>> loss = ProxyNCAPPLoss(num_classes=3, embedding_size=2, scale=None, temperature=1 / 9)
        >>> loss.proxies().shape
        torch.Size([3, 2])
    """

    gives = frozenset({"proxies"})

    def __init__(
        self,
        num_classes: Annotated[int, Ge(2)],
        embedding_size: Count,
        scale: Positive | None = 3.0,
        temperature: Positive | None = None,
        proxy_init_std: Positive = 0.125,
        denominator: Denominator = "all",
        block_bytes: Count = 2**28,
    ) -> None:
        super().__init__()
        if (scale is None) == (temperature is None):
            raise UserError(
                f"loss.scale={scale} and loss.temperature={temperature} set the same thing "
                f"(T = 1/s^2): give one and set the other to null."
            )
        if temperature is not None:
            scale = temperature**-0.5
        assert scale is not None
        self.scale: float = scale
        self.denominator: Denominator = denominator
        self.block_bytes = block_bytes
        self.weight = nn.Parameter(torch.randn(num_classes, embedding_size) * proxy_init_std)
        self._last: Tensor | None = None

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        *,
        memory: MemoryBank | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """The loss of the kept samples; `memory` is not read.

        Raises:
            UserError: a kept sample's label is outside 0..C-1.
        """
        if keep is not None:
            kept = keep.nonzero().squeeze(1)
            embeddings, labels = embeddings[kept], labels[kept]
        loss, each = _mean_and_each(
            embeddings, labels, self.weight, self.scale, self.denominator, self.block_bytes
        )
        self._last = each if keep is None else None
        return loss

    @property
    def last_losses(self) -> Tensor | None:
        """Those of which the last call gave the mean, where it was given no `keep`."""
        return self._last

    @torch.no_grad()
    def per_sample(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The softmax's cross-entropy [B] of each sample; see `EmbeddingLoss.per_sample`."""
        with torch.autocast(embeddings.device.type, enabled=False):
            rows = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
            sums = _softmax_sums(
                F.normalize(rows, dim=1, eps=_SMALLEST_NORM),
                self.weight.to(rows.dtype),
                labels,
                2 * self.scale**2,
                self.denominator == "negatives",
                _classes_at_once(rows, self.block_bytes),
            )
        return sums.logsumexp - sums.own

    def proxies(self) -> Tensor:
        """Class proxies [C, D], unit norm, detached."""
        return F.normalize(self.weight.detach(), dim=1, eps=_SMALLEST_NORM)


class _ProxySoftmax(torch.autograd.Function):
    """Sum over unit rows of logsumexp(logits) - logits[own], and what is summed [B].

    Logits are those of `_logits`. The summands have no gradient. That of the sum is written down:
    autograd would hold several [C, D] tensors for the normalisation of the proxies, and every block
    of logits.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        proxies: Tensor,
        labels: Tensor,
        sharpness: float,
        negatives_only: bool,
        block: int,
    ) -> tuple[Tensor, Tensor]:
        own, logsumexp, norms, cosines = _softmax_sums(
            rows, proxies, labels, sharpness, negatives_only, block
        )
        ctx.sharpness, ctx.negatives_only, ctx.block = sharpness, negatives_only, block
        fits = len(proxies) <= block
        ctx.save_for_backward(rows, proxies, labels, logsumexp, norms, cosines if fits else None)
        each = logsumexp - own
        ctx.mark_non_differentiable(each)
        return each.sum(), each

    @staticmethod
    def backward(
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        rows, proxies, labels, logsumexp, norms, all_cosines = ctx.saved_tensors
        if torch.is_grad_enabled():
            plain = partial(_plain_softmax, labels, ctx.sharpness, ctx.negatives_only)
            for_rows, for_proxies = recorded_gradient(plain, [rows, proxies], grads[0])
            return for_rows, for_proxies, None, None, None, None
        for_rows, for_proxies = torch.zeros_like(rows), torch.empty_like(proxies)
        with torch.autocast(rows.device.type, enabled=False):
            for part in _parts(len(proxies), ctx.block):
                block, length = proxies[part], norms[part]
                cosines = all_cosines
                if cosines is None:
                    cosines = _cosines(rows, block, _guarded(length))
                slope = _logits(cosines, length, ctx.sharpness).sub_(logsumexp).exp_()
                mine = _OwnClass(labels, part)
                share = torch.zeros_like(logsumexp) if ctx.negatives_only else mine.read(slope)
                mine.write(slope, share - 1)
                slope *= (ctx.sharpness * grads[0]) / _guarded(length)[:, None]
                for_rows += slope.T @ block
                # The proxy's own direction is projected out; under the guard its length counts.
                radial = torch.where(
                    length > _SMALLEST_NORM, (slope * cosines).sum(dim=1), slope.sum(dim=1)
                )
                radial /= _guarded(length)
                gradient = torch.mm(slope, rows, out=for_proxies[part])
                gradient.addcmul_(radial[:, None], block, value=-1)
        return for_rows, for_proxies, None, None, None, None


class _SoftmaxSums(NamedTuple):
    """Own logits [B], logsumexp over the denominator [B], norms of the proxies [C], cosines of the
    last block [c, B]."""

    own: Tensor
    logsumexp: Tensor
    norms: Tensor
    cosines: Tensor


def _softmax_sums(
    rows: Tensor,
    proxies: Tensor,
    labels: Tensor,
    sharpness: float,
    negatives_only: bool,
    block: int,
) -> _SoftmaxSums:
    """Both sides of each sample's cross-entropy, `block` classes at a time."""
    own = rows.new_zeros(len(rows))
    logsumexp = rows.new_full((len(rows),), -torch.inf)
    cosines, norms = rows.new_empty(0), proxies.norm(dim=1)
    for part in _parts(len(proxies), block):
        cosines = _cosines(rows, proxies[part], _guarded(norms[part]))
        mine = _OwnClass(labels, part)
        logits = _logits(cosines, norms[part], sharpness)
        own += mine.read(logits)
        if negatives_only:
            mine.write(logits, torch.full_like(own, -torch.inf))
        logsumexp = torch.logaddexp(logsumexp, logits.logsumexp(dim=0))
    return _SoftmaxSums(own, logsumexp, norms, cosines)


def _plain_softmax(
    labels: Tensor, sharpness: float, negatives_only: bool, rows: Tensor, proxies: Tensor
) -> Tensor:
    """The sum of `_ProxySoftmax` in operations that autograd can follow."""
    norms = proxies.norm(dim=1)
    logits = _logits(_cosines(rows, proxies, _guarded(norms)), norms, sharpness)
    own = logits.gather(0, labels[None])
    if negatives_only:
        logits = logits.scatter(0, labels[None], -torch.inf)
    return torch.sum(logits.logsumexp(dim=0) - own.squeeze(0))


class _OwnClass:
    """Access to each sample's own class in a block of classes; nothing waits for the device."""

    def __init__(self, labels: Tensor, part: slice) -> None:
        place = labels - part.start
        self.inside = (place >= 0) & (place < part.stop - part.start)
        self.place = torch.where(self.inside, place, 0)[None]

    def read(self, block: Tensor) -> Tensor:
        """The own entries [B] of a block [c, B]; 0 for classes outside of it."""
        return torch.where(self.inside, block.gather(0, self.place).squeeze(0), 0.0)

    def write(self, block: Tensor, values: Tensor) -> None:
        """Replace the own entries by `values` [B]; those outside of the block are left out."""
        there = block.gather(0, self.place)
        block.scatter_(0, self.place, torch.where(self.inside, values[None], there))


def _parts(classes: int, block: int) -> Iterator[slice]:
    return (slice(at, min(at + block, classes)) for at in range(0, classes, block))


def _classes_at_once(rows: Tensor, block_bytes: int) -> int:
    """Classes of a block whose logits for `rows` take at most so many bytes; 1 at least."""
    return max(1, block_bytes // max(1, rows.element_size() * len(rows)))


def _guarded(norms: Tensor) -> Tensor:
    return norms.clamp(min=_SMALLEST_NORM)


def _cosines(rows: Tensor, proxies: Tensor, norms: Tensor) -> Tensor:
    """Cosines [c, B] of unit rows [B, D] and proxies [c, D] of guarded norms [c].

    A proxy a row: so all three products of a step go along their operands as they lie.
    """
    return (proxies @ rows.T).div_(norms[:, None])


def _logits(cosines: Tensor, norms: Tensor, sharpness: float) -> Tensor:
    """Negated squared distances [c, B], up to a constant of each row; sharpness is 2 s^2."""
    lengths = norms / _guarded(norms)
    return (sharpness * cosines).add_((sharpness / 2 * (1 - lengths.square()))[:, None])


def _check_labels(labels: Tensor, classes: int) -> None:
    outside = (labels < 0) | (labels >= classes)
    if labels.device.type != "cpu":
        torch._assert_async(~outside.any(), "a label has no proxy")
    elif outside.any():
        raise UserError(
            f"ProxyNCA++ has {classes} proxies, one per class, but a sample is labelled "
            f"{int(labels[outside][0])}: labels must lie in 0..{classes - 1}."
        )

"""Time and memory of losses, forward and backward, beside a named peer.

Each row is one loss at one size, with a peer that computes the same numbers in another way; the
script fails unless values and gradients agree. Ours and the peer take turns in one process, each
ratio is the median over the rounds, and on a CPU seconds are processor time summed over threads, so
that other processes do not count. Memory is the peak of one call, gradients included, above what
inputs and parameters occupy: of the device on a GPU, of a fresh process each on a CPU (Linux).

    python scripts/bench_losses.py --rows proxynca_pp rkd_angle --out outputs/bench/losses.json

A new row is a function in `ROWS` that returns a `Row`.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Row:
    """A loss, its peer, and what both are differentiated by.

    Attributes:
        ours: computes the loss from scratch.
        peer: the same by other means.
        peer_name: who that is.
        ours_leaves: tensors whose gradients `ours` fills, in the order of `peer_leaves`; without
            any, what is measured is the way forward.
        peer_leaves: tensors whose gradients `peer` fills.
        setting: sizes, for the report.
        tolerance: largest difference of values and gradients, as a share of the largest entry.
    """

    ours: Callable[[], Tensor]
    peer: Callable[[], Tensor]
    peer_name: str
    ours_leaves: list[Tensor]
    peer_leaves: list[Tensor]
    setting: dict[str, int | float] = field(default_factory=dict)
    tolerance: float = 1e-4


def unit_rows(n: int, dim: int, device: torch.device) -> Tensor:
    return F.normalize(torch.randn(n, dim, device=device), dim=1)


def proxynca_pp(device: torch.device) -> Row:
    """ProxyNCA++ at the size of Stanford Online Products (Teh et al., ECCV 2020)."""
    from pytorch_metric_learning.losses import ProxyNCALoss

    from noisyml.losses.metric_learning.proxy_nca_pp import ProxyNCAPPLoss

    batch, classes, dim, scale = 192, 11_318, 2_048, 3.0
    ours = ProxyNCAPPLoss(classes, dim, scale=scale).to(device)
    # On unit vectors the library's squared distance is 2 - 2 cos: s^2 times it is ours.
    peer = ProxyNCALoss(classes, dim, softmax_scale=scale**2).to(device)
    with torch.no_grad():
        peer.proxies.copy_(ours.weight)
    labels = torch.arange(batch, device=device) // 3 * 17
    rows = torch.randn(batch, dim, device=device)
    a, b = (rows.clone().requires_grad_() for _ in range(2))
    return Row(
        lambda: ours(a, labels),
        lambda: peer(b, labels),
        "pytorch-metric-learning ProxyNCALoss",
        [a, ours.weight],
        [b, peer.proxies],
        {"batch": batch, "classes": classes, "dim": dim},
    )


def released_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """RKD-A from the directions between all points, [N, N, D], as its equations are written."""

    def cosines(points: Tensor) -> Tensor:
        directions = F.normalize(points[None] - points[:, None], dim=2)
        return torch.bmm(directions, directions.transpose(1, 2))

    with torch.no_grad():
        target = cosines(teacher)
    return F.smooth_l1_loss(cosines(student), target)


def rkd_angle(device: torch.device) -> Row:
    """RKD-A at the batch size of the paper, self-distillation (Park et al., CVPR 2019)."""
    from noisyml.losses.distillation.classical import relational

    n, dim = 128, 512
    rows, teacher = torch.randn(n, dim, device=device), unit_rows(n, dim, device)
    a, b = (rows.clone().requires_grad_() for _ in range(2))
    return Row(
        lambda: relational.rkd_angle(a, teacher),
        lambda: released_angle(b, teacher),
        "directions [N, N, D] with autograd, float32",
        [a],
        [b],
        {"n": n, "student_dim": dim, "teacher_dim": dim},
    )


def rkd_angle_small_student(device: torch.device) -> Row:
    """RKD-A with a student of 128 dimensions."""
    from noisyml.losses.distillation.classical import relational

    n = 128
    rows, teacher = torch.randn(n, 128, device=device), unit_rows(n, 512, device)
    a, b = (rows.clone().requires_grad_() for _ in range(2))
    return Row(
        lambda: relational.rkd_angle(a, teacher),
        lambda: released_angle(b, teacher),
        "directions [N, N, D] with autograd, float32",
        [a],
        [b],
        {"n": n, "student_dim": 128, "teacher_dim": 512},
    )


def triplet_all(device: torch.device) -> Row:
    """All triplets of an RKD teacher's batch (25 classes of 5 and one of 3)."""
    from noisyml.losses.metric_learning.triplet import TripletLoss

    n, dim = 128, 512
    labels = torch.arange(n, device=device) // 5
    rows = torch.randn(n, dim, device=device)
    a, b = (rows.clone().requires_grad_() for _ in range(2))
    ours = TripletLoss("all").to(device)

    def gathered() -> Tensor:
        """Three [T, D] tensors of anchors, positives and negatives."""
        x = F.normalize(b, dim=1)
        anchor, positive, negative = ours.triplets(x.detach(), labels)
        return F.triplet_margin_loss(x[anchor], x[positive], x[negative], margin=0.2)

    return Row(
        lambda: ours(a, labels),
        gathered,
        "torch triplet_margin_loss on gathered rows",
        [a],
        [b],
        {"n": n, "dim": dim},
    )


def rcml_discrepancy(device: torch.device) -> Row:
    """Squared MMD of two networks' early activations at the size of RCML on BigEarthNet's batch."""
    from noisyml.losses.multilabel.rcml import squared_mmd

    n, dim, sigma = 256, 65_536, 1e4
    x = torch.rand(n, dim, device=device)
    y = x + 0.3 * torch.rand(n, dim, device=device)
    ours, peers = ([rows.clone().requires_grad_() for rows in (x, y)] for _ in range(2))

    def three_products() -> Tensor:
        """Kernels from three Gram matrices, left to autograd, as its equations are written."""
        total = x.new_zeros(())
        for (a, b), sign in zip(((0, 0), (0, 1), (1, 1)), (1, -2, 1), strict=True):
            left, right = peers[a], peers[b]
            norms = left.square().sum(dim=1)[:, None] + right.square().sum(dim=1)
            total = total + sign * (-(norms - 2 * left @ right.T) / sigma).exp().mean()
        return total

    return Row(
        lambda: squared_mmd(ours[0], ours[1], sigma),
        three_products,
        "three Gram matrices with autograd",
        ours,
        peers,
        {"batch": n, "dim": dim},
    )


def rcml_ranking(device: torch.device) -> Row:
    """RCML's ranking of a batch of BigEarthNet with 43 classes, without gradient as in training."""
    from noisyml.losses.multilabel.rcml import ranking_errors

    n, classes = 256, 43
    p = torch.rand(n, classes, device=device)
    labels = (torch.rand(n, classes, device=device) < 0.1).float()
    # One number that no sample and no suspect can change unnoticed.
    code = torch.rand(n, device=device)

    @torch.no_grad()
    def ours() -> Tensor:
        ranking = ranking_errors(p, labels)
        return code @ (ranking.errors + ranking.suspected)

    @torch.no_grad()
    def pairs() -> Tensor:
        """Mask and margins of all pairs of classes as tensors of their own."""
        chosen = labels[:, None, :] * (1 - labels)[:, :, None]
        cost = chosen * (1 + 2 * (p[:, :, None] - p[:, None, :])).clamp(min=0).square()
        missing, extra = ((cost.sum(dim=axis) + 1e-10).sqrt() for axis in (2, 1))
        worst, most = missing.max(dim=1), extra.max(dim=1)
        suspected = torch.where(worst.values > most.values, worst.indices, most.indices)
        return code @ (0.2 * missing.sum(dim=1) + 0.8 * extra.sum(dim=1) + suspected)

    return Row(
        ours,
        pairs,
        "all pairs of classes, masked, as released",
        [],
        [],
        {"batch": n, "classes": classes},
    )


def clustered_rows(labels: Tensor, dim: int) -> Tensor:
    """Rows [N, D] with cosines of about 0.2 within a class and 0 between: some pairs are mined."""
    centres = torch.randn(int(labels.max()) + 1, dim, device=labels.device)
    return 0.5 * centres[labels] + torch.randn(len(labels), dim, device=labels.device)


def cbml_by_anchor(raw: Tensor, labels: Tensor) -> Tensor:
    """CBML, logarithmic form, anchor after anchor as in the released code."""
    rows = F.normalize(raw, dim=1)
    similarity = rows @ rows.T
    costs = []
    for i in range(len(labels)):
        positive = similarity[i][labels == labels[i]]
        positive = positive[positive < 1 - 1e-5]
        negative = similarity[i][labels != labels[i]]
        if len(positive) < 1 or len(negative) < 1:
            continue
        centre = 0.2 * positive.mean() + 0.8 * negative.mean()
        constraint = (negative - centre).square().sum()
        near = negative[negative + 0.1 > positive.min()]
        far = positive[positive - 0.1 < negative.max()]
        if len(near) < 1 or len(far) < 1:
            continue
        pulls = torch.log(1 + torch.exp(-(far - 0.5) / 0.5).sum())
        pushes = torch.log(1 + torch.exp((near - 1.0) / 0.01).sum())
        costs.append(pulls + pushes + constraint)
    return torch.stack(costs).sum() / len(labels)


def cbml(device: torch.device) -> Row:
    """CBML at the batch of its recipe for CUB-200 (Kan et al., TPAMI 2023)."""
    from noisyml.losses.metric_learning.cbml import CBMLLoss

    classes, per_class, dim = 15, 8, 512
    labels = torch.arange(classes, device=device).repeat_interleave(per_class)
    rows = clustered_rows(labels, dim)
    a, b = (rows.clone().requires_grad_() for _ in range(2))
    ours = CBMLLoss()
    return Row(
        lambda: ours(F.normalize(a, dim=1), labels),
        lambda: cbml_by_anchor(b, labels),
        "a loop over the anchors, as released",
        [a],
        [b],
        {"batch": len(labels), "per_class": per_class, "dim": dim},
    )


def multi_similarity(device: torch.device) -> Row:
    """Multi-Similarity with its miner on the same batch."""
    from pytorch_metric_learning.losses import MultiSimilarityLoss as LibraryLoss
    from pytorch_metric_learning.miners import MultiSimilarityMiner

    from noisyml.losses.metric_learning.pair_losses import MultiSimilarityLoss

    classes, per_class, dim = 15, 8, 512
    labels = torch.arange(classes, device=device).repeat_interleave(per_class)
    rows = clustered_rows(labels, dim)
    a, b = (rows.clone().requires_grad_() for _ in range(2))
    ours = MultiSimilarityLoss(alpha=2, beta=50, base=0.5, epsilon=0.1)
    library, miner = LibraryLoss(alpha=2, beta=50, base=0.5), MultiSimilarityMiner(epsilon=0.1)
    return Row(
        lambda: ours(F.normalize(a, dim=1), labels),
        lambda: library(b, labels, miner(b, labels)),
        "pytorch-metric-learning MultiSimilarityLoss and -Miner",
        [a],
        [b],
        {"batch": len(labels), "per_class": per_class, "dim": dim},
    )


def augmented_by_anchor(raw: Tensor, labels: Tensor, variance: Tensor, noise: Tensor) -> Tensor:
    """Copies one set after the other, then Multi-Similarity anchor after anchor, as released."""
    size = len(labels)
    parts = [F.normalize(raw, dim=1)]
    for draws in noise:
        shift = 0.8**0.5 * variance[labels].sqrt() * draws
        parts.append(F.normalize(raw + shift, dim=1))
    columns = torch.cat(parts)
    column_labels = labels.repeat(len(parts))
    own = torch.arange(len(columns), device=raw.device) % size
    similarity = columns[:size] @ columns.T
    costs = []
    for i in range(size):
        positive = similarity[i][(column_labels == labels[i]) & (own != i)]
        positive = positive[positive < 1 - 1e-5]
        negative = similarity[i][column_labels != labels[i]]
        if len(positive) < 1 or len(negative) < 1:
            continue
        near = negative[negative + 0.1 > positive.min()]
        far = positive[positive - 0.1 < negative.max()]
        if len(near) < 1 or len(far) < 1:
            continue
        pulls = torch.log(1 + torch.exp(-2 * (far - 0.5)).sum()) / 2
        pushes = torch.log(1 + torch.exp(40 * (near - 0.5)).sum()) / 40
        costs.append(pulls + pushes)
    return torch.stack(costs).sum() / size


def iaa(device: torch.device) -> Row:
    """IAA's copies and loss at the batch of its recipe for CUB-200 (Fu et al., IEEE TMM 2022)."""
    from noisyml.losses.metric_learning.class_covariance import ClassCovariance
    from noisyml.losses.metric_learning.iaa import augmented_loss
    from noisyml.losses.metric_learning.pair_losses import MultiSimilarityLoss

    classes, per_class, dim, copies = 100, 4, 512, 3
    labels = torch.randperm(classes, device=device)[:32].repeat_interleave(per_class)
    rows = clustered_rows(labels, dim)
    a, b = (rows.clone().requires_grad_() for _ in range(2))
    variance = 0.1 * torch.rand(classes, dim, device=device)
    statistics = ClassCovariance(classes, dim, neighbor_correction="off").to(device)
    statistics.update(
        torch.full((classes,), 60.0, device=device), torch.zeros_like(variance), variance
    )
    noise = torch.randn(copies, len(labels), dim, device=device)
    loss = MultiSimilarityLoss()

    def ours() -> Tensor:
        shifts = statistics.shifts(a, labels, copies=copies, strength=0.8, noise=noise)
        return augmented_loss(loss, a, labels, shifts=shifts)

    return Row(
        ours,
        lambda: augmented_by_anchor(b, labels, variance, noise),
        "a loop over copies and anchors, as released",
        [a],
        [b],
        {"batch": len(labels), "copies": copies, "dim": dim},
    )


def eac(device: torch.device) -> Row:
    """EAC's consistency of 100 classes on ResNet-50's last map (Zhang et al., ECCV 2022)."""
    from noisyml.losses.classification.eac import attention_consistency

    batch, classes, channels, side = 32, 100, 2_048, 7
    weight = torch.randn(classes, channels, device=device) / channels**0.5
    first, second = (torch.rand(batch, channels, side, side, device=device) for _ in range(2))
    ours = [first.clone().requires_grad_(), second.clone().requires_grad_()]
    peer = [first.requires_grad_(), second.requires_grad_()]

    def released() -> Tensor:
        """Maps by broadcasting to [B, C, D, H, W], compared through a sampled grid."""
        one, two = ((x[:, None] * weight[:, :, None, None]).sum(dim=2) for x in peer)
        steps = torch.linspace(-1, 1, side, device=device)
        y, x = torch.meshgrid(steps, steps, indexing="ij")
        grid = torch.stack([-x, y], dim=-1).expand(batch, -1, -1, -1)
        mirrored = F.grid_sample(two, grid, padding_mode="border", align_corners=True)
        return F.mse_loss(one, mirrored)

    return Row(
        lambda: attention_consistency(*ours, weight).mean(),
        released,
        "released form: [B, C, D, H, W] and grid sampling",
        ours,
        peer,
        {"batch": batch, "classes": classes, "channels": channels, "side": side},
    )


#: What can be measured, by the name typed after ``--rows``.
ROWS: dict[str, Callable[[torch.device], Row]] = {
    "proxynca_pp": proxynca_pp,
    "rkd_angle": rkd_angle,
    "rkd_angle_small_student": rkd_angle_small_student,
    "triplet_all": triplet_all,
    "rcml_discrepancy": rcml_discrepancy,
    "rcml_ranking": rcml_ranking,
    "cbml": cbml,
    "multi_similarity": multi_similarity,
    "iaa": iaa,
    "eac": eac,
}


def bare_selection(device: torch.device) -> Row:
    """BARE's selection and loss at the size of Food-101N (Patel and Sastry, WACV 2023)."""
    from noisyml.methods.classification.base import kept_mean
    from noisyml.selectors.bare import Bare
    from noisyml.selectors.base import Evidence

    batch, classes = 256, 101
    labels = torch.randint(classes, (batch,), device=device)
    scores = torch.randn(batch, classes, device=device)
    a, b = (scores.clone().requires_grad_() for _ in range(2))
    selector = Bare("batch", "unbiased")

    def ours() -> Tensor:
        keep = selector.select(Evidence(labels, labels, logits=a.detach())).keep
        return kept_mean(F.cross_entropy(a, labels, reduction="none"), keep)

    def indexed() -> Tensor:
        """Thresholds and indices on the host, as the released code has them."""
        posterior = F.softmax(b.detach(), dim=1).clamp(1e-8, 1 - 1e-8).cpu()
        known = labels.cpu()
        threshold = (posterior.mean(0) + posterior.std(0))[known]
        rows = torch.arange(len(known))
        kept = (posterior[rows, known] >= threshold).nonzero().squeeze(1).to(device)
        return F.cross_entropy(b[kept], labels[kept])

    setting: dict[str, int | float] = {"batch": batch, "classes": classes}
    return Row(ours, indexed, "indices by way of the host", [a], [b], setting)


ROWS["bare_selection"] = bare_selection


def differentiate(loss: Callable[[], Tensor], leaves: list[Tensor]) -> Tensor:
    for leaf in leaves:
        leaf.grad = None
    value = loss()
    if leaves:
        value.backward()
    return value.detach()


def check_agreement(name: str, row: Row) -> float:
    """Largest difference of value and gradients as a share of the largest entry."""
    values = differentiate(row.ours, row.ours_leaves), differentiate(row.peer, row.peer_leaves)
    worst = float((values[0] - values[1]).abs() / values[1].abs())
    for a, b in zip(row.ours_leaves, row.peer_leaves, strict=True):
        assert a.grad is not None
        assert b.grad is not None
        worst = max(worst, float((a.grad - b.grad).abs().max() / b.grad.abs().max()))
    if not worst <= row.tolerance:
        sys.exit(f"{name}: ours and {row.peer_name} differ by {worst:.1e} of the largest entry")
    return worst


def seconds(action: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call: processor time on a CPU, so that other processes do not count."""
    if device.type == "cpu":
        start = time.process_time()
        action()
        return time.process_time() - start
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    action()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start


def resident(key: str) -> int:
    """``VmRSS`` (now) or ``VmHWM`` (peak since it was reset) of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"this system does not report {key}")


def peak_bytes(loss: Callable[[], Tensor], leaves: list[Tensor], device: torch.device) -> int:
    """Peak memory of one call beyond what is allocated before it."""
    if device.type == "cuda":
        for leaf in leaves:
            leaf.grad = None
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        differentiate(loss, leaves)
        return torch.cuda.max_memory_allocated(device) - before
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    differentiate(loss, leaves)
    return resident("VmHWM") - before


def memory_of(name: str, side: str, device: torch.device) -> int:
    if device.type == "cuda":
        row = ROWS[name](device)
        loss, leaves = (
            (row.ours, row.ours_leaves) if side == "ours" else (row.peer, row.peer_leaves)
        )
        differentiate(loss, leaves)  # what libraries keep for good
        return peak_bytes(loss, leaves, device)
    command = [sys.executable, __file__, "--rows", name, "--memory-of", side, "--device", "cpu"]
    command += ["--threads", str(torch.get_num_threads())]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(name: str, rounds: int, device: torch.device) -> dict[str, object]:
    row = ROWS[name](device)
    agreement = check_agreement(name, row)
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    for _ in range(rounds):
        times["ours"].append(seconds(lambda: differentiate(row.ours, row.ours_leaves), device))
        times["peer"].append(seconds(lambda: differentiate(row.peer, row.peer_leaves), device))
    memory = {side: memory_of(name, side, device) for side in times}
    return {
        "setting": row.setting,
        "peer": row.peer_name,
        "largest_difference": agreement,
        "median_seconds": {side: statistics.median(found) for side, found in times.items()},
        "peer_over_ours": statistics.median(
            peer / ours for ours, peer in zip(times["ours"], times["peer"], strict=True)
        ),
        "peak_bytes": memory,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds per row")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--memory-of", choices=("ours", "peer"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.memory_of:
        (name,) = options.rows
        row = ROWS[name](device)
        # A tiny call first loads what is loaded once.
        warm = torch.ones(2, 2, requires_grad=True)
        differentiate(lambda: (F.normalize(warm) @ warm.T).logsumexp(1).sum(), [warm])
        ours = options.memory_of == "ours"
        print(
            peak_bytes(
                row.ours if ours else row.peer,
                row.ours_leaves if ours else row.peer_leaves,
                device,
            )
        )
        return
    report = {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
        "rounds": options.rounds,
        "rows": {name: measure(name, options.rounds, device) for name in options.rows},
    }
    text = json.dumps(report, indent=2)
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()

"""What CBML and the augmentation claim, on classes of digits that training has not seen.

The directions are those of the authors' own figures: the variance constraint narrows the negative
cosines and helps retrieval; noise of the identity's covariance hurts, of the classes' own not.
"""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from noisyml.losses.cbml import CBMLLoss
from noisyml.losses.iaa import ClassCovariance, augmented_loss, full_class_moments
from noisyml.losses.pair_losses import MultiSimilarityLoss
from noisyml.metrics.retrieval import retrieval_metrics

pytestmark = pytest.mark.slow


def train(loss, seed, *, per_class, statistics=None):
    """Precision at 1 on unseen classes; variances of negative cosines, seen and unseen classes."""
    pixels, classes = load_digits(return_X_y=True)
    rows, labels = torch.from_numpy(pixels / 16).float(), torch.from_numpy(classes)
    seen = labels < 5
    known, known_labels = rows[seen], labels[seen]
    members = [(known_labels == label).nonzero().squeeze(1) for label in range(5)]
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 32)
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for step in range(200):
        chosen = torch.cat(
            [m[torch.randperm(len(m), generator=generator)[:per_class]] for m in members]
        )
        noise = 0.1 * torch.randn(len(chosen), 64, generator=generator)
        raw = network(known[chosen] + noise)
        copies = None
        if statistics is not None and step >= 60:
            if statistics.needs_pass and step % 5 == 0:
                with torch.no_grad():
                    count, mean, full = full_class_moments(network(known), known_labels, 5)
                statistics.update(count, mean, full.diagonal(dim1=1, dim2=2))
            copies = statistics.synthesise(
                raw, known_labels[chosen], copies=3, strength=0.6, generator=generator
            )
        optimizer.zero_grad()
        augmented_loss(loss, raw, known_labels[chosen], copies).backward()
        optimizer.step()
    with torch.no_grad():
        embeddings = nn.functional.normalize(network(rows), dim=1)
    spreads = []
    for part in (seen, ~seen):
        cosines = embeddings[part] @ embeddings[part].T
        spreads.append(float(cosines[labels[part][:, None] != labels[part]].var()))
    found = retrieval_metrics(embeddings[~seen], labels[~seen], metrics=["precision_at_1"])
    return torch.tensor([found["precision_at_1"], *spreads])


def test_variance_constraint():
    with_constraint, without = (
        torch.stack([train(CBMLLoss(constraint=c), seed, per_class=8) for seed in range(3)]).mean(0)
        for c in ("mvc", "none")
    )
    assert with_constraint[0] > without[0] + 0.02
    assert (2 * with_constraint[1:] < without[1:]).all()


def test_noise_of_the_right_size():
    def mean_precision(**options):
        runs = [
            train(
                MultiSimilarityLoss(),
                seed,
                per_class=4,
                statistics=ClassCovariance(5, 32, **options) if options else None,
            )
            for seed in range(3)
        ]
        return float(torch.stack(runs).mean(0)[0])

    plain = mean_precision()
    own = mean_precision(covariance="diagonal")
    identity = mean_precision(covariance="identity")
    repeated = mean_precision(covariance="diagonal", square_root="repeated")
    assert own > plain - 0.04
    assert max(identity, repeated) < own - 0.08

"""Category discovery: clusters of unlabelled samples, scored on old and on new classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal, get_args

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from noisyml.checks import Count, Seed
from noisyml.distributed import all_reduce_sum, rank
from noisyml.errors import UserError
from noisyml.metrics.base import Evaluator, SplitRole
from noisyml.metrics.clustering import nmi
from noisyml.metrics.discovery.accuracy import (
    discovery_accuracy,
    match,
    split_discovery_accuracy,
)
from noisyml.metrics.discovery.class_number import estimate_classes
from noisyml.metrics.retrieval_evaluator import Collected
from noisyml.runs.artefacts import Artefact
from noisyml.similarity.kmeans import kmeans
from noisyml.targets import TargetKind

#: Cluster of every scored sample, for pictures of the groups.
CLUSTERS_FILE = "discovered_clusters.parquet"
#: Classes that a cluster's row of the table names.
CLASSES_NAMED = 3


class _DiscoveryScores(Evaluator):
    """Scores of clusters, wherever they come from.

    Roles: ``query`` are unlabelled samples, which are scored, and ``gallery`` labelled ones, with
    the labels that training saw; or ``pool`` alone, held-out samples, none of them labelled.
    """

    target_kinds: ClassVar[frozenset[TargetKind]] = frozenset({"partial"})
    #: The output that is looked at.
    output: ClassVar[str]
    metric_labels: ClassVar[Mapping[str, str]] = {
        "clustering_accuracy_all": "All",
        "clustering_accuracy_old": "Old",
        "clustering_accuracy_new": "New",
        "nmi": "NMI",
        "ari": "ARI",
    }

    def __init__(self, per_split: bool, headline: str) -> None:
        self.per_split = per_split
        self.headline = headline
        self._collected: dict[SplitRole, Collected] = {}
        self._found: tuple[Tensor, Tensor] | None = None
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self._collected = {role: Collected() for role in get_args(SplitRole)}
        self._found = None

    def update(
        self,
        outputs: Mapping[str, Tensor],
        targets: Tensor,
        index: Tensor,
        role: SplitRole = "pool",
    ) -> None:
        """Take in one batch, see `Evaluator.update`."""
        self._collected[role].add(index, targets, self.needed(outputs, self.output))

    @torch.no_grad()
    def compute(self) -> dict[str, float]:
        """The scores over all batches of all ranks, each sample counted once.

        Raises:
            UserError: nothing to score.
        """
        pool, query, gallery, _ = (self._collected[role].whole() for role in get_args(SplitRole))
        scored = query if pool is None else pool
        if scored is None:
            raise UserError("There are no unlabelled samples to score: check the test set.")
        rows, labels = scored
        names = self._names()
        values = torch.zeros(len(names), dtype=torch.float64, device=rows.device)
        # On one rank only: k-means need not give the same clusters twice on different machines.
        if rank() == 0:
            labels = labels.cpu()
            clusters, extra = self.clusters(rows.cpu(), gallery)
            self._found = (clusters, labels)
            values = values + values.new_tensor(list(self._scores(clusters, labels, extra)))
        return dict(zip(names, all_reduce_sum(values).tolist(), strict=True))

    def clusters(self, rows: Tensor, gallery: tuple[Tensor, Tensor] | None) -> tuple[Tensor, float]:
        """The cluster of each row [N] int64 of what is scored, and the number of clusters.

        Args:
            rows: [N, D] on the CPU.
            gallery: rows and observed labels of labelled samples, where there are any.
        """
        raise NotImplementedError

    def _names(self) -> list[str]:
        """Names of what `compute` measures."""
        parts = get_args(Literal["all", "old", "new"])
        names = [f"clustering_accuracy_{part}" for part in parts]
        if self.per_split:
            names += [f"split_accuracy_{part}" for part in parts]
        return [*names, "nmi", "ari", "clusters"]

    def _scores(self, clusters: Tensor, labels: Tensor, number: float) -> Iterable[float]:
        old = torch.isin(labels, self._known())
        yield from discovery_accuracy(clusters, labels, old)
        if self.per_split:
            yield from split_discovery_accuracy(clusters, labels, old)
        yield nmi(labels, clusters)
        yield float(adjusted_rand_score(labels.numpy(), clusters.numpy()))
        yield number

    def _known(self) -> Tensor:
        return torch.as_tensor(np.asarray(self.known_classes, dtype=np.int64))

    def artefacts(self) -> Iterable[Artefact]:
        """Clusters and the classes that they hold, and the confusion after matching."""
        if self._found is None:
            return
        clusters, labels = self._found
        names = [str(name) for name in self.class_names]
        old = np.isin(np.arange(len(names)), np.asarray(self.known_classes))
        matched = match(clusters, labels).classes[clusters]
        columns = {"cluster": clusters.numpy(), "matched": matched.numpy()}
        positions = {"index_in_split": np.arange(len(clusters))}
        yield Artefact(CLUSTERS_FILE, pd.DataFrame({**positions, **columns}))
        yield Artefact(
            "discovered_groups.parquet",
            group_table(clusters, labels, names, old),
            "Discovered groups",
            "Clusters of unlabelled samples, the largest first, with the class each is matched to "
            "and the classes that it holds.",
        )
        yield Artefact(
            "discovery_confusion.parquet",
            confusion_table(clusters, labels, names, old),
            "Confusion after matching",
            "Unlabelled samples by true class (rows) and by the class of their cluster.",
        )


class DiscoveryEvaluator(_DiscoveryScores):
    """Semi-supervised k-means of embeddings; accuracy on all, old and new classes.

    Labelled samples belong to the cluster of their class throughout; of ``pool`` nothing is
    labelled, and k-means is plain.

    Args:
        num_clusters: K; None: the number of classes; ``estimate``: found by `estimate_classes`.
        n_init: starts of k-means, the lowest inertia wins; 100 in the papers.
        max_iterations: of one start.
        normalise: rows are brought to length 1 first.
        most_classes: upper end of the search for the number of classes.
        per_split: add ``split_accuracy_*``, by assignments of their own for old and new classes.
        seed: of the starts.
        headline: metric that checkpoints and progress go by unless told otherwise.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"embeddings"})
    output: ClassVar[str] = "embeddings"

    def __init__(
        self,
        num_clusters: Count | Literal["estimate"] | None = None,
        n_init: Count = 10,
        max_iterations: Count = 200,
        normalise: bool = True,
        most_classes: Count = 1000,
        per_split: bool = False,
        seed: Seed = 0,
        headline: str = "clustering_accuracy_all",
    ) -> None:
        super().__init__(per_split, headline)
        self.num_clusters = num_clusters
        self.n_init = n_init
        self.max_iterations = max_iterations
        self.normalise = normalise
        self.most_classes = most_classes
        self.seed = seed

    def clusters(self, rows: Tensor, gallery: tuple[Tensor, Tensor] | None) -> tuple[Tensor, float]:
        """By k-means of scored and labelled rows together."""
        known = torch.full((len(rows),), -1, dtype=torch.int64)
        everything = rows
        if gallery is not None:
            everything = torch.cat([rows, gallery[0].cpu()])
            # Classes of which no sample came into the run leave no gap.
            numbers = gallery[1].cpu().unique(return_inverse=True)[1]
            known = torch.cat([known, numbers])
        everything = everything.to(torch.promote_types(everything.dtype, torch.float32))
        if self.normalise:
            everything = F.normalize(everything, dim=1)
        number = self._number(everything, known)
        found = kmeans(
            everything,
            number,
            labels=known,
            n_init=self.n_init,
            max_iterations=self.max_iterations,
            seed=self.seed,
        )
        return found.labels[: len(rows)], float(number)

    def _number(self, rows: Tensor, known: Tensor) -> int:
        if self.num_clusters is None:
            return min(len(self.class_names), len(rows))
        if self.num_clusters != "estimate":
            return self.num_clusters
        if not bool((known >= 0).any()):
            return len(self.class_names)
        found = estimate_classes(
            rows, known, self.most_classes, self.n_init, self.max_iterations, self.seed
        )
        return found.number


class ParametricDiscoveryEvaluator(_DiscoveryScores):
    """The classifier's own answer as cluster (SimGCD); accuracy on all, old and new classes.

    Args:
        per_split: see `DiscoveryEvaluator`.
        headline: metric that checkpoints and progress go by unless told otherwise.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"logits"})
    output: ClassVar[str] = "logits"

    def __init__(self, per_split: bool = False, headline: str = "clustering_accuracy_all") -> None:
        super().__init__(per_split, headline)

    def clusters(self, rows: Tensor, gallery: tuple[Tensor, Tensor] | None) -> tuple[Tensor, float]:
        """The largest class score."""
        return rows.argmax(dim=1), float(rows.shape[1])


def group_table(
    clusters: Tensor, labels: Tensor, class_names: list[str], old: np.ndarray
) -> pd.DataFrame:
    """Clusters, the largest first, and the true classes that they hold.

    Args:
        clusters: [N] int64.
        labels: true classes [N] int64.
        class_names: C names.
        old: bool [C].

    Returns:
        Columns ``cluster samples matched kind purity classes``.
    """
    counts, classes = match(clusters, labels)
    sizes = counts.sum(dim=1)
    rows = []
    for cluster in sizes.argsort(descending=True, stable=True).tolist():
        size = int(sizes[cluster])
        if not size:
            continue
        order = counts[cluster].argsort(descending=True, stable=True)[:CLASSES_NAMED].tolist()
        held = [(class_names[i], int(counts[cluster, i])) for i in order if counts[cluster, i]]
        matched = int(classes[cluster])
        rows.append(
            {
                "cluster": cluster,
                "samples": size,
                "matched": "none" if matched < 0 else class_names[matched],
                "kind": "" if matched < 0 else "old" if old[matched] else "new",
                "purity": int(counts[cluster].max()) / size,
                "classes": ", ".join(f"{name} ({count})" for name, count in held),
            }
        )
    return pd.DataFrame(rows)


def confusion_table(
    clusters: Tensor, labels: Tensor, class_names: list[str], old: np.ndarray
) -> pd.DataFrame:
    """Samples by true class and by the class that their cluster is matched to.

    Args:
        clusters: [N] int64.
        labels: true classes [N] int64.
        class_names: C names.
        old: bool [C].

    Returns:
        A row for each class that occurs: ``class kind`` and a column for each class, and ``none``
        for clusters without one.
    """
    counts, classes = match(clusters, labels)
    width = len(class_names)
    table = np.zeros((width, width + 1), dtype=np.int64)
    place = np.where(classes.numpy() < 0, width, classes.numpy())
    np.add.at(table.T, place, np.pad(counts.numpy(), ((0, 0), (0, width - counts.shape[1]))))
    present = np.flatnonzero(table.sum(axis=1))
    columns = {"class": [class_names[i] for i in present]}
    columns["kind"] = ["old" if old[i] else "new" for i in present]
    heads = [*class_names, "none"]
    frame = pd.DataFrame(table[present], columns=heads)
    if not table[:, width].any():
        frame = frame.drop(columns="none")
    return pd.concat([pd.DataFrame(columns), frame], axis=1)

"""Evaluator of instance retrieval: queries with lists of judged images search a gallery."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from noisyml.checks import Count, Ge, NonNegative, OpenShare, WholeNonNegative
from noisyml.distributed import all_reduce_sum, gather, is_distributed, rank
from noisyml.errors import UserError
from noisyml.metrics.base import Evaluator, SplitRole
from noisyml.metrics.documents import trec_qrels, trec_run
from noisyml.metrics.instances.reranking import diffused, expanded_queries, pca_whitening
from noisyml.metrics.instances.scores import (
    Judged,
    Places,
    Ranked,
    count_larger,
    places_in,
    precision_at_depth,
    ranked,
    revisited_scores,
    trapezoid_precision,
)
from noisyml.runs.artefacts import Artefact
from noisyml.storage.rows import read_rows
from noisyml.targets import TARGETS, TargetKind
from noisyml.targets.judgements import EASY, HARD, JUNK, Judgements, Protocol

#: The metric that a run goes by, and ranks that count, by protocol.
_HEADLINES: Mapping[Protocol, str] = {
    "revisited": "map_medium",
    "instances": "map",
    "landmarks": "map_at_100",
}
LANDMARK_RANKS = 100
#: Distractors that are counted together; fewer wait.
DISTRACTORS_AT_ONCE = 4096


class InstanceEvaluator(Evaluator):
    """Scores by lists of judged images, under the protocol that the data set names.

    ``revisited`` (Oxford, Paris): ``map_easy``, ``map_medium``, ``map_hard`` and their mean
    precisions ``mp_medium_at_10``; ``instances`` (INSTRE): ``map``; ``landmarks`` (Google):
    ``map_at_100``, also of the public and the private queries.

    Distractors are compared as they come and never kept, unless several processes share them, or
    queries are expanded or walk, which takes the whole gallery twice.

    Args:
        precision_at: numbers K of the mean precisions of the revisited protocol.
        metric: ``cosine``, or ``ip`` (inner product of what the whitening gives, as INSTRE's
            released evaluation has it).
        whitening: descriptors of another set to learn a PCA-whitening from, a ``.npy`` file or a
            folder of ``noisyml embed``; ``gallery``: learn it from the gallery; None: none.
        whitening_dims: components kept; None: all.
        expansion: first answers that join a query, see `expanded_queries`; 0: none.
        expansion_alpha: power of their similarities; 0: all equally.
        diffusion: neighbours in the graph on which queries walk, see `diffused`; 0: no walk.
        diffusion_start: first answers that the walk starts from.
        diffusion_gamma: power of similarities in it.
        diffusion_alpha: share that walks on.
        run_depth: answers of each query that the ranking in TREC's format holds.
        headline: the metric that checkpoints and progress go by unless told otherwise; None:
            ``map_medium``, ``map`` or ``map_at_100``, by protocol.

    Raises:
        UserError: queries that walk without unit length.
    """

    target_kinds: ClassVar[frozenset[TargetKind]] = frozenset(TARGETS)
    reads_labels: ClassVar[bool] = False
    metric_labels: ClassVar[Mapping[str, str]] = {
        "map_medium": "mAP M",
        "map_hard": "mAP H",
        "map_easy": "mAP E",
        "map": "mAP",
        "map_at_100": "mAP@100",
        "map_at_100_public": "mAP@100 public",
        "map_at_100_private": "mAP@100 private",
    }

    def __init__(
        self,
        precision_at: Sequence[Count] = (1, 5, 10),
        metric: Literal["cosine", "ip"] = "cosine",
        whitening: str | None = None,
        whitening_dims: Count | None = None,
        expansion: WholeNonNegative = 0,
        expansion_alpha: NonNegative = 3.0,
        diffusion: WholeNonNegative = 0,
        diffusion_start: Count = 10,
        diffusion_gamma: NonNegative = 3.0,
        diffusion_alpha: OpenShare = 0.99,
        run_depth: Annotated[int, Ge(1)] = 100,
        headline: str | None = None,
    ) -> None:
        if metric == "ip" and (expansion or diffusion):
            raise UserError(
                "evaluators.instances.expansion and .diffusion take powers of cosines: leave "
                "metric=cosine."
            )
        self.precision_at = list(precision_at)
        self.metric = metric
        self.whitening = whitening
        self.whitening_dims = whitening_dims
        self.expansion = expansion
        self.expansion_alpha = expansion_alpha
        self.diffusion = diffusion
        self.diffusion_settings: dict[str, Any] = {
            "start": diffusion_start,
            "gamma": diffusion_gamma,
            "alpha": diffusion_alpha,
        }
        self.run_depth = run_depth
        self._headline = headline
        self.headline = headline or _HEADLINES["revisited"]
        self.reset()

    def know(self, class_names: Sequence[str], judgements: Judgements | None) -> None:
        """Go by the protocol of the judgements."""
        super().know(class_names, judgements)
        if self._headline is None and judgements is not None:
            self.headline = _HEADLINES.get(judgements.protocol, self.headline)

    def reset(self) -> None:
        """Forget all batches."""
        self._parts: dict[SplitRole, list[tuple[Tensor, Tensor]]] = {
            "query": [],
            "gallery": [],
            "distractors": [],
        }
        self._prepared: tuple[Tensor, Tensor] | None = None
        self._whiten: Callable[[Tensor], Tensor] | None = None
        self._found: Places | None = None
        self._before: Tensor | None = None
        self._waiting: list[Tensor] = []
        self._images: Judged | None = None

    @property
    def _keeps_distractors(self) -> bool:
        return bool(self.expansion or self.diffusion or is_distributed())

    @torch.no_grad()
    def update(
        self,
        outputs: Mapping[str, Tensor],
        targets: Tensor,
        index: Tensor,
        role: SplitRole = "pool",
    ) -> None:
        """Take in one batch of queries, of the gallery, or (after both) of distractors.

        Raises:
            UserError: a pool, whose images nobody judged for each other.
        """
        if role not in self._parts:
            raise UserError(
                "The evaluator of instances needs queries and a gallery with judgements, e.g. "
                "dataset=roxford5k: choose another evaluator=... for this data set."
            )
        rows = self.needed(outputs, "embeddings").detach()
        if role != "distractors" or self._keeps_distractors:
            self._parts[role].append((index.detach(), rows))
            return
        self._waiting.append(rows)
        if sum(map(len, self._waiting)) >= DISTRACTORS_AT_ONCE:
            self._count_waiting()

    @torch.no_grad()
    def compute(self) -> dict[str, float]:
        """The metrics over all judged queries; a collective call.

        Raises:
            UserError: a data set without judged images.
        """
        known = self._known
        queries, _ = self._prepare()
        found = self._rank()
        self._count_waiting()
        place = found.place
        if self._before is not None:
            place = place + self._before
        if is_distributed() and not (self.expansion or self.diffusion):
            place = place + self._shared_distractors(queries, found)
        return self._scores(known, place)

    def artefacts(self) -> Iterable[Artefact]:
        """The first answers and the judgements in TREC's formats."""
        if self._found is None or self.judgements is None:
            return
        top, scores = (x.cpu().numpy() for x in (self._found.top, self._found.top_scores))
        # Rows beyond the gallery are distractors, which have no name.
        top = top.copy()
        top[top >= len(self.judgements.document_ids)] = -1
        run = trec_run(top, scores, self.judgements, "noisyml")
        yield Artefact("run.trec.txt", run)
        yield Artefact("qrels.trec.txt", trec_qrels(self.judgements))

    # -- ranking -------------------------------------------------------------------------------

    @property
    def _known(self) -> Judgements:
        known = self.judgements
        if known is None or known.protocol == "graded":
            raise UserError(
                "The evaluator of instances needs lists of judged images, which the data set has "
                "not: choose e.g. dataset=roxford5k, or evaluator=retrieval."
            )
        return known

    @property
    def _judged(self) -> Judged:
        """All judged images that the gallery holds, by query."""
        if self._images is not None:
            return self._images
        known = self._known
        there = known.document >= 0
        query = torch.from_numpy(known.query[there])
        order = query.argsort(stable=True)
        images = torch.from_numpy(known.document[there])[order]
        device = self._prepare()[0].device
        found = Judged(images.to(device), query[order].to(device), len(known.query_ids))
        self._images = found
        return found

    def _prepare(self) -> tuple[Tensor, Tensor]:
        """Queries and gallery as they are compared."""
        if self._prepared is None:
            query, gallery = self._whole("query"), self._whole("gallery")
            known = self._known
            for rows, names, what in (
                (query, known.query_ids, "queries"),
                (gallery, known.document_ids, "gallery images"),
            ):
                if len(rows) != len(names):
                    raise UserError(
                        f"{len(rows)} of {len(names)} {what} were embedded: images that cannot be "
                        f"decoded leave a ranking incomplete; `noisyml data check` lists them."
                    )
            if self.whitening is not None:
                base = gallery.float().cpu().numpy()
                if self.whitening != "gallery":
                    base = read_rows(Path(self.whitening))
                if base.shape[1] != gallery.shape[1]:
                    raise UserError(
                        f"evaluators.instances.whitening={self.whitening} has {base.shape[1]} "
                        f"columns, and the embeddings have {gallery.shape[1]}: embed that set by "
                        f"the same model."
                    )
                self._whiten = pca_whitening(base, self.whitening_dims)
            query, gallery = self._described(query), self._described(gallery)
            if self._keeps_distractors and (self.expansion or self.diffusion):
                more = self._whole("distractors", missing=query[:0])
                if len(more):
                    gallery = torch.cat([gallery, self._described(more)])
            if self.expansion:
                query = expanded_queries(query, gallery, self.expansion, self.expansion_alpha)
            self._prepared = query, gallery
        return self._prepared

    def _described(self, rows: Tensor) -> Tensor:
        if rows.dtype != torch.float64:
            rows = rows.float()
        if self._whiten is not None:
            rows = self._whiten(rows)
        return F.normalize(rows) if self.metric == "cosine" else rows

    def _rank(self) -> Places:
        if self._found is None:
            queries, gallery = self._prepare()
            self._found = places_in(self._rankings(queries, gallery), self._judged, self.run_depth)
        return self._found

    def _rankings(self, queries: Tensor, gallery: Tensor) -> Iterator[Ranked]:
        if self.diffusion:
            return diffused(queries, gallery, self.diffusion, **self.diffusion_settings)
        return ranked(queries, gallery)

    def _count_waiting(self) -> None:
        """Count the distractors at hand that come before each judged image, and forget them."""
        if not self._waiting:
            return
        queries, _ = self._prepare()
        found = self._rank()
        block = self._described(torch.cat(self._waiting))
        more = count_larger(queries, block, self._judged, found.scores)
        self._before = more if self._before is None else self._before + more
        self._waiting = []

    def _shared_distractors(self, queries: Tensor, found: Places) -> Tensor:
        """Distractors of all ranks before each judged image, each counted once."""
        parts = self._parts["distractors"]
        here = torch.cat([torch.empty(0, dtype=torch.int64), *(index.cpu() for index, _ in parts)])
        index, owner = gather(here), gather(torch.full_like(here, rank()))
        order = index.argsort(stable=True)
        first = torch.ones_like(order, dtype=torch.bool)
        first[1:] = index[order][1:] != index[order][:-1]
        mine = torch.zeros_like(first)
        mine[order[first]] = True
        mine = mine[owner == rank()]
        count = torch.zeros_like(found.place)
        for (_, rows), keep in zip(parts, mine.split([len(i) for i, _ in parts]), strict=True):
            block = self._described(rows[keep.to(rows.device)])
            count += count_larger(queries, block, self._judged, found.scores)
        return all_reduce_sum(count)

    def _whole(self, role: SplitRole, missing: Tensor | None = None) -> Tensor:
        """Embeddings of all ranks, in the order of their positions, each once."""
        parts = self._parts[role]
        # A rank without a batch asks the others how wide theirs are.
        widths = gather(torch.tensor([rows.shape[1] for _, rows in parts[:1]], dtype=torch.int64))
        if not len(widths):
            if missing is not None:
                return missing
            raise UserError(f"The evaluator of instances has seen no {role}.")
        none = (torch.empty(0, dtype=torch.int64), torch.empty(0, int(widths[0])))
        index, rows = (gather(torch.cat(part)) for part in zip(*(parts or [none]), strict=True))
        order = index.argsort(stable=True)
        first = torch.ones_like(order, dtype=torch.bool)
        first[1:] = index[order][1:] != index[order][:-1]
        return rows[order[first]]

    # -- scores --------------------------------------------------------------------------------

    def _scores(self, known: Judgements, place: Tensor) -> dict[str, float]:
        """Means over queries.

        Args:
            known: the judgements.
            place: of the images of `_judged`.
        """
        lists, places = self._lists(known, place.cpu())
        if known.protocol == "revisited":
            values = revisited_scores(places, lists, self.precision_at, depth=_NEVER)
        elif known.protocol == "instances":
            values = {"map": trapezoid_precision(places["easy"], lists["easy"], _NEVER)}
        else:
            each = precision_at_depth(places["easy"], lists["easy"], LANDMARK_RANKS)
            values = {f"map_at_{LANDMARK_RANKS}": each}
            for name, mask in known.parts.items():
                values[f"map_at_{LANDMARK_RANKS}_{name}"] = each[torch.from_numpy(mask)]
        return {name: float(each.nanmean()) for name, each in values.items()}

    @staticmethod
    def _lists(known: Judgements, place: Tensor) -> tuple[dict[str, Judged], dict[str, Tensor]]:
        """Judged images by grade, and their places; of images that are not there `_NEVER`."""
        order = torch.from_numpy(known.query).argsort(stable=True)
        document = torch.from_numpy(known.document)[order]
        query, grade = (torch.from_numpy(x)[order] for x in (known.query, known.grade))
        at = torch.full_like(document, _NEVER)
        at[document >= 0] = place
        grades = {"easy": EASY, "hard": HARD, "junk": JUNK}
        if known.protocol != "revisited":
            grades = {"easy": HARD}
        chosen = {name: grade == value for name, value in grades.items()}
        n = len(known.query_ids)
        lists = {name: Judged(document[mask], query[mask], n) for name, mask in chosen.items()}
        return lists, {name: at[mask] for name, mask in chosen.items()}


#: Place of an image that the gallery does not hold.
_NEVER = 2**40

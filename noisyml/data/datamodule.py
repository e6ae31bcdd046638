"""From a data set, a noise injector and a sampler to the loaders of a run."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from lightning import LightningDataModule
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from noisyml import distributed
from noisyml.checks import Checked, Count, OpenShare, WholeNonNegative
from noisyml.data.base import (
    DEFAULT_TEST_SET,
    TEST_ROLES,
    DatasetSource,
    Split,
    TestRole,
    TestSet,
)
from noisyml.data.features import CachedFeatures, Progress, cached_features
from noisyml.data.labelled import (
    LabelledPart,
    Pool,
    SoftMasks,
    WithUnlabelled,
    pool_rows,
)
from noisyml.data.labelling import Labelling, raw_pixels
from noisyml.data.samplers.plans import (
    BatchPlan,
    DrawnBatch,
    OnSubset,
    PlannedBatches,
    ResumablePlan,
)
from noisyml.data.subset import subset
from noisyml.data.transforms.image import ViewMaker
from noisyml.data.vectors import vector_rows
from noisyml.data.views import (
    DrawPartners,
    EvaluationView,
    FeatureView,
    OnBroken,
    TrainingView,
    whole,
)
from noisyml.errors import UserError
from noisyml.noise.base import Injector
from noisyml.noise.manifest import NoiseManifest
from noisyml.noise.planted import plant_errors
from noisyml.targets import PARTIAL, SINGLE, Labels, Target

log = logging.getLogger(__name__)


class FrozenBackbone(Protocol):
    """Interface of a backbone to the feature cache."""

    def raw_features(self, images: Tensor) -> Tensor:
        """uint8 [B, C, H, W] to float [B, F]."""
        ...

    def fingerprint(self) -> str:
        """Digest of all that raw features depend on."""
        ...

    def set_feature_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Standardise by these [F], [F]."""
        ...

    def to(self, device: torch.device) -> Any:
        """Move to a device."""
        ...


class DataModule(Checked, LightningDataModule):
    """Splits, noise, features and loaders of one run.

    `prepare_labels` must be called before the model is built: it reads the splits and corrupts the
    training labels, which fixes the number of classes.

    Args:
        dataset: the source of splits.
        noise: corrupts the labels of the training split.
        transform: images to tensors.
        sampler: makes the batch plan from ``(labels, seed)``.
        seed: seed of the plan and of augmentation.
        eval_batch_size: images per evaluation batch and process.
        num_workers: decoding processes per loader; 0 decodes in the training process.
        cache_dir: folder of the feature cache.
        on_broken: what an undecodable image does: ``error``, or ``skip`` and record.
        noisy_val: inject noise into the validation split too; ``auto``: unless the data set brings
            a clean one. Model choice must not see clean labels that training would not have. Noise
            that describes one training split (`Injector.training_only`) stays there.
        open_set_source: where the images of open-set noise come from (its training split).
        train_size: samples of the training split to use, see `subset`; null: all.
        train_seed: which of them.
        labelled: the samples of the training split whose label training may use; None: all, or
            those that the data set marks.
        planted_errors: share of the training labels to flip on purpose, see `plant_errors`.
        pin_memory: copy batches to page-locked memory (for GPUs).
        progress: called with a title while features are computed; returns the progress function.

    Raises:
        UserError: a value that is none of the choices.
    """

    def __init__(
        self,
        dataset: DatasetSource,
        noise: Injector,
        transform: ViewMaker,
        sampler: Callable[..., BatchPlan],
        *,
        seed: WholeNonNegative,
        cache_dir: str,
        eval_batch_size: Count = 128,
        num_workers: WholeNonNegative = 0,
        on_broken: OnBroken = "error",
        noisy_val: Literal["auto"] | bool = "auto",
        open_set_source: DatasetSource | None = None,
        train_size: Count | None = None,
        train_seed: WholeNonNegative = 0,
        labelled: LabelledPart | None = None,
        planted_errors: OpenShare = 0.0,
        pin_memory: bool = False,
        progress: Callable[[str], Any] | None = None,
    ) -> None:
        super().__init__()
        self.dataset = dataset
        self.noise = noise
        self.transform = transform
        self.make_plan = sampler
        self.seed = seed
        self.cache_dir = Path(cache_dir).expanduser()
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.on_broken = on_broken
        self.noisy_val = (not dataset.clean_val) if noisy_val == "auto" else noisy_val
        self.open_set_source = open_set_source
        self.train_size = train_size
        self.train_seed = train_seed
        self.labelled = LabelledPart() if labelled is None else labelled
        #: Samples that training batches are drawn from; set before training.
        self.pool: Pool = "labelled"
        #: Soft masks of unlabelled samples.
        self.soft_masks = SoftMasks()
        self.planted_errors = planted_errors
        self.pin_memory = pin_memory
        self.progress = progress
        self.backbone: FrozenBackbone | None = None
        self.validate_on_test = False
        #: True when evaluating: the standardisation comes with the trained encoder.
        self.fixed_statistics = False
        self._features: dict[str, CachedFeatures] = {}
        self._partners: DrawPartners | None = None
        self._resume_at = (0, 0)
        #: Made when it is first asked for: that takes a while, and some plans have a memory.
        self._plan: BatchPlan | None = None
        self._plan_state: dict[str, Any] = {}
        self._batches: PlannedBatches | None = None
        self._substitutes: NDArray[np.int64] | None = None
        self._extension: Callable[[BatchPlan], BatchPlan] | None = None
        #: The splits of each test set by role; the default one is called ``test``.
        self.test_sets: dict[str, TestSet] = {}

    # -- labels ------------------------------------------------------------------------------

    def prepare_labels(self, backbone: FrozenBackbone | None = None) -> NoiseManifest:
        """Read the splits and corrupt the training labels; deterministic, the same on every rank.

        Args:
            backbone: a frozen one, for noise that depends on image features.

        Returns:
            The manifest of the training split.

        Raises:
            UserError: data missing, or noise that does not fit the data.
        """
        splits = dict(self.dataset.splits())
        if self.train_size is not None:
            splits["train"] = subset(splits["train"], self.train_size, self.train_seed)
        splits = self.labelled.apply(splits)

        def features(split: Split) -> NDArray[Any]:
            self.backbone = backbone
            return np.asarray(self._cached(split).features)

        labelling = Labelling(
            self.dataset,
            self.noise,
            pixels=lambda split: raw_pixels(split, self.transform, self.on_broken),
            features=None if backbone is None else features,
            open_set_source=self.open_set_source,
            cache_dir=self.cache_dir,
            pooled=self.labelled.chooses,
        )
        observed = labelling.observe(splits, self.noisy_val)
        self.manifest, self.splits = observed.manifest, observed.splits
        self.test_sets = self.dataset.test_sets(list(self.splits))
        _check_test_sets(self.test_sets, self.splits)
        if self.planted_errors:
            if self.target is PARTIAL:
                raise UserError(
                    "data.planted_errors flips labels, and some training samples have none: leave "
                    "it at 0."
                )
            self.manifest = plant_errors(self.manifest, self.planted_errors)
        #: Labels that teach, [N]: the observed ones, and pseudo-labels where there are any.
        self.teaching: Labels = np.array(self.manifest.observed)
        self.val_labels = observed.val_labels
        self.num_classes = self.manifest.num_classes
        return self.manifest

    @property
    def target(self) -> Target:
        """The kind of the labels."""
        return self.manifest.target

    @property
    def known_classes(self) -> NDArray[np.int64]:
        """The classes that any training label names, ascending."""
        return self.target.present(self.manifest.observed)

    @property
    def class_names(self) -> list[str]:
        """Names of the observed classes; numbers where the noise made classes of its own."""
        names = list(self.splits["train"].class_names)
        if self.num_classes != len(names):
            return [f"label {i}" for i in range(self.num_classes)]
        return names

    def remarks(self) -> list[str]:
        """Remarks on the splits that a user should know before reading numbers."""
        found = self._nothing_to_find()
        if self.val_labels is None:
            found.append(
                "there is no validation split: the last model is reported, and no best one"
            )
        elif not np.array_equal(self.val_labels, self.splits["val"].labels):
            found.append(
                "validation labels are noisy like training labels (data.noisy_val): validation "
                "metrics are lower than test metrics"
            )
        return found

    def _nothing_to_find(self) -> list[str]:
        """Remarks on parts in which no sample has another one of its class to be found."""
        parts: dict[str, TestSet] = (
            {"validation split": {"pool": "val"}} if "val" in self.splits else {}
        )
        parts |= {f"test set '{name}'": roles for name, roles in self.test_sets.items()}
        found = []
        for what, roles in parts.items():
            labels = {role: self.splits[name].labels for role, name in roles.items()}
            if self.target is not SINGLE or {"pool", "gallery"} <= labels.keys():
                continue
            queries = labels.get("query", labels.get("pool", np.empty(0, np.int64)))
            if "gallery" in labels:
                alone = not np.isin(queries, labels["gallery"]).any()
                where = "in the gallery"
            else:
                alone = len(np.unique(queries)) == len(queries)
                where = "beside it"
            if alone:
                found.append(
                    f"{what}: none of its {len(queries)} queries has an image of its class "
                    f"{where}, so that retrieval metrics are undefined there"
                )
        return found

    @property
    def test_splits(self) -> dict[str, list[tuple[str, TestRole]]]:
        """The splits of all test sets in loader order, each with the sets and roles it serves.

        Set by set, and in each in the order of `TEST_ROLES`; a split of several sets comes once.
        """
        serves: dict[str, list[tuple[str, TestRole]]] = {}
        for test_set, parts in self.test_sets.items():
            for role in TEST_ROLES:
                if role in parts:
                    serves.setdefault(parts[role], []).append((test_set, role))
        return serves

    # -- features ----------------------------------------------------------------------------

    def use_features_of(self, backbone: FrozenBackbone) -> None:
        """Serve cached features of a frozen backbone in place of images."""
        self.backbone = backbone

    @property
    def holds_vectors(self) -> bool:
        """True for a data set of vectors, which are served as they are."""
        return next(iter(self.splits.values())).inputs.kind == "vectors"

    def rows(self, name: str) -> Any:
        """The vectors or raw cached features [N, F] of a split; None where images are served."""
        return self._features[name].features if name in self._features else None

    def use_partners(self, partners: DrawPartners) -> None:
        """Draw a partner of each training row at every visit; only where there are `rows`."""
        self._partners = partners

    def prepare_data(self) -> None:
        """Fill the feature cache, on one process per machine (Lightning's rule)."""
        if self.backbone is not None and not self.holds_vectors:
            for name in self._feature_splits():
                self._cached(self.splits[name])

    def setup(self, stage: str) -> None:
        """Compare the labels across ranks, map cached features, standardise the backbone's input.

        Raises:
            UserError: the ranks did not make the same labels.
        """
        self._check_same_labels()
        self._plan = None
        if self.holds_vectors:
            none = np.empty(0, dtype=np.int64)
            self._features = {
                name: CachedFeatures(vector_rows(self.splits[name].inputs), none)
                for name in self._feature_splits()
            }
            return
        if self.backbone is None:
            return
        self._features = {name: self._cached(self.splits[name]) for name in self._feature_splits()}
        if "train" in self._features and not self.fixed_statistics:
            self.backbone.set_feature_statistics(*self._feature_statistics())

    def _check_same_labels(self) -> None:
        """Every rank made its own labels; noise by features may round differently elsewhere."""
        if not distributed.is_distributed():
            return
        digest = hashlib.sha256(self.manifest.sha256.encode())
        if self.val_labels is not None:
            digest.update(self.target.content(self.val_labels))
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        mine = torch.tensor([list(digest.digest())], dtype=torch.int64, device=device)
        digests = distributed.gather(mine)
        others = (digests != digests[0]).any(dim=1).nonzero().flatten().tolist()
        if others:
            raise UserError(
                f"Process {others[0]} made other noisy labels than process 0 (another data set, "
                "library version or processor there): make them once, and train with "
                "noise=manifest noise.path=<noise.parquet of that run>."
            )

    def _feature_splits(self) -> list[str]:
        return [name for name in ("train", "val", *self.test_splits) if name in self.splits]

    def _feature_statistics(self) -> tuple[Tensor, Tensor]:
        cached = self._features["train"]
        used = np.setdiff1d(np.arange(len(cached.features)), cached.broken)
        blocks = np.array_split(used, max(1, len(used) // 8192))
        mean = sum(cached.features[b].sum(0, dtype=np.float64) for b in blocks) / len(used)
        square = sum(((cached.features[b] - mean) ** 2).sum(0) for b in blocks) / len(used)
        return torch.from_numpy(mean).float(), torch.from_numpy(np.sqrt(square)).float()

    def _cached(self, split: Split) -> CachedFeatures:
        backbone = self.backbone
        if backbone is None:
            raise ValueError("no frozen backbone to compute features with")
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        report: Progress | None = None
        if self.progress is not None:
            report = self.progress(f"features of {split.name}")

        def encode(images: Tensor) -> Tensor:
            backbone.to(device)
            with torch.inference_mode():
                return backbone.raw_features(images.to(device)).cpu()

        return cached_features(
            split,
            self.transform,
            encode,
            backbone.fingerprint(),
            self.cache_dir,
            batch_size=self.eval_batch_size,
            num_workers=self.num_workers,
            on_broken=self.on_broken,
            progress=report,
        )

    # -- loaders -----------------------------------------------------------------------------

    def _usable(self, name: str) -> NDArray[np.int64]:
        """Positions of a split's samples, without images known to be broken."""
        everything = np.arange(len(self.splits[name]))
        if name not in self._features:
            return everything
        return np.setdiff1d(everything, self._features[name].broken)

    def _drawn(self) -> NDArray[np.int64]:
        """Positions of the training samples that the plan of batches goes by."""
        usable, train = self._usable("train"), self.splits["train"]
        return np.intersect1d(usable, pool_rows(self.pool, train.labelled, len(train)))

    def teach(self, positions: NDArray[np.int64], labels: Labels) -> None:
        """Let the samples at `positions` be taught by these pseudo-labels, from the next epoch on.

        Loaders that are there already see them too.
        """
        self.teaching[positions] = labels

    def broken(self) -> dict[str, list[int]]:
        """Positions of undecodable images that feature extraction skipped, by split."""
        return {n: c.broken.tolist() for n, c in self._features.items() if len(c.broken)}

    @property
    def plan(self) -> BatchPlan:
        """The batches of the training split (positions among its usable samples)."""
        if self._plan is None:
            labels = self.manifest.observed if self._substitutes is None else self._substitutes
            self._plan = self.make_plan(labels=labels[self._drawn()], seed=self.seed)
            if isinstance(self._plan, ResumablePlan):
                taken = self._plan.load_state_dict(self._plan_state)
                if not taken and self._substitutes is not None and self.trainer is not None:
                    self._plan.begin(self.trainer.current_epoch)
        return self._plan

    def replan(self, labels: NDArray[np.int64]) -> None:
        """Let the sampler go by other labels [N] than the observed ones, from the next epoch on.

        The plan of an epoch is made when its iteration begins, so an epoch that begins with this
        call already follows it.
        """
        self._substitutes = labels
        self._plan = None
        self._follow_plan()

    def extend_batches(self, extension: Callable[[BatchPlan], BatchPlan]) -> None:
        """Let further samples of the training split join every batch, from the next epoch on.

        Args:
            extension: the plan of batches (positions in the split) to a longer one of as many.
        """
        self._extension = extension
        self._follow_plan()

    def _follow_plan(self) -> None:
        if self._batches is not None:
            self._batches.plan = self._plan_on_split()

    def _plan_on_split(self) -> BatchPlan:
        """The plan as positions in the training split, with what joins its batches."""
        plan: BatchPlan = OnSubset(self.plan, self._drawn())
        if self.pool == "both":
            train = self.splits["train"]
            others = pool_rows("unlabelled", train.labelled, len(train))
            plan = WithUnlabelled(plan, np.intersect1d(others, self._usable("train")), self.seed)
        return plan if self._extension is None else self._extension(plan)

    def train_dataloader(self) -> DataLoader[Any]:
        """Planned batches, from where an interrupted run left off."""
        split, labels = self.splits["train"], self.teaching
        view: Dataset[Any]
        if "train" in self._features:
            view = self._row_view("train", labels, self._partners)
        else:
            view = TrainingView(split, labels, self.transform, self.on_broken, self.soft_masks)
        epoch, start = self._resume_at
        batches = PlannedBatches(
            self._plan_on_split(),
            self.seed,
            distributed.rank(),
            distributed.world_size(),
            epoch,
            start,
        )
        self._batches = batches
        return self._loader(view, batches)

    def training_pass(self, epoch: int) -> DataLoader[Any]:
        """This rank's share of the training split in order, randomly transformed as in training.

        Args:
            epoch: seeds the transforms, together with the run's seed.
        """
        if "train" in self._features:
            return self.predict_dataloader("train")
        mine = self._usable("train")
        shard = distributed.shard_slice(len(mine))
        view = TrainingView(
            self.splits["train"], self.manifest.observed, self.transform, self.on_broken
        )
        entropy = np.random.SeedSequence([self.seed, epoch, 0x5A5])
        seeds = entropy.generate_state(len(mine), np.uint64).astype(np.uint64)[shard]
        mine, size = mine[shard], self.eval_batch_size
        cuts = range(0, len(mine), size)
        return self._loader(
            view, [DrawnBatch(mine[at : at + size], seeds[at : at + size]) for at in cuts]
        )

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """The validation split, then (if the run also watches it) the parts of the test split."""
        loaders = []
        if "val" in self.splits:
            loaders.append(self._evaluation_loader("val", self.val_labels))
        if self.validate_on_test:
            loaders += self.test_dataloader()
        return loaders

    def test_dataloader(self) -> list[DataLoader[Any]]:
        """One loader per part of the test, see `test_splits`."""
        return [self._evaluation_loader(name) for name in self.test_splits]

    def predict_dataloader(
        self, name: str = "train", positions: NDArray[np.int64] | None = None
    ) -> DataLoader[Any]:
        """Some or all of a split, in order, untransformed, with the labels the run observes.

        Args:
            name: the split.
            positions: samples wanted, all of them on this rank; None: this rank's share of all.
        """
        labels = self.manifest.observed if name == "train" else None
        return self._evaluation_loader(name, labels, positions)

    def _evaluation_loader(
        self,
        name: str,
        labels: Labels | None = None,
        positions: NDArray[np.int64] | None = None,
    ) -> DataLoader[Any]:
        split = self.splits[name]
        view: Dataset[Any]
        if name in self._features:
            view = self._row_view(name, split.labels if labels is None else labels)
        else:
            view = EvaluationView(split, self.transform, labels, self.on_broken)
        mine = self._usable(name)
        if positions is None:
            # Contiguous shards, no padding: nothing to remove afterwards, empty ones allowed.
            mine = mine[distributed.shard_slice(len(mine))]
        else:
            mine = positions[np.isin(positions, mine)]
        size = self.eval_batch_size
        batches = [mine[start : start + size] for start in range(0, len(mine), size)]
        return self._loader(view, batches)

    def _row_view(
        self, name: str, labels: Labels, partners: DrawPartners | None = None
    ) -> FeatureView:
        """The vectors or cached features of a split with labels."""
        word: Literal["vector", "features"] = "vector" if self.holds_vectors else "features"
        split = self.splits[name]
        return FeatureView(self.rows(name), labels, split.labelled, word, partners)

    def _loader(self, view: Dataset[Any], batches: Any) -> DataLoader[Any]:
        workers = 0 if isinstance(view, FeatureView) else self.num_workers
        return DataLoader(
            view,
            batch_sampler=batches,
            collate_fn=whole,
            num_workers=workers,
            persistent_workers=workers > 0 and not isinstance(batches, PlannedBatches),
            pin_memory=self.pin_memory,
            # Its own generator: drawing a loader's seed must not advance the global one.
            generator=torch.Generator().manual_seed(self.seed),
        )

    # -- resuming ----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Position of the sampler: epoch, and batches of it already consumed."""
        if self.trainer is None:
            return {}
        epoch = self.trainer.current_epoch
        consumed = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        if consumed >= self.trainer.num_training_batches:
            epoch, consumed = epoch + 1, 0
        state = {"epoch": epoch, "consumed": consumed, "noise_sha256": self.manifest.sha256}
        if isinstance(self._plan, ResumablePlan):
            state["plan"] = self._plan.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the plan where `state_dict` says; refuses another data set or noise."""
        if not state_dict:
            return
        if state_dict["noise_sha256"] != self.manifest.sha256:
            raise UserError(
                "The checkpoint was trained with other labels than this run has: the data set or "
                "the noise has changed since; start a new run."
            )
        self._resume_at = (state_dict["epoch"], state_dict["consumed"])
        self._plan, self._plan_state = None, state_dict.get("plan", {})


def _check_test_sets(test_sets: Mapping[str, TestSet], splits: Mapping[str, Split]) -> None:
    """Refuse test sets of splits that are not there, or whose labels cannot be compared.

    Raises:
        ValueError: such a set; the data set's code is wrong.
    """
    for test_set, parts in test_sets.items():
        unknown = sorted(set(parts) - set(TEST_ROLES)) + [
            name for name in parts.values() if name not in splits
        ]
        if unknown or not ({"pool"} <= parts.keys() or {"query", "gallery"} <= parts.keys()):
            raise ValueError(
                f"test set {test_set}: {dict(parts)} must give splits of the data set the role "
                "pool, or query and gallery; distractors may be added"
            )
    if test_sets and next(iter(test_sets)) != DEFAULT_TEST_SET:
        raise ValueError(f"the first test set must be called {DEFAULT_TEST_SET}")

"""Settings at the top of each verb's configuration, with the values they may have.

The fields are the keys of the root YAML files. Parts (``dataset``, ``method``, ...) are not here:
their constructors check what belongs to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_type_hints

from noisyml.checks import (
    ArgumentError,
    Count,
    Interval,
    OpenShare,
    Seed,
    WholeNonNegative,
    check_fields,
)
from noisyml.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig

_T = TypeVar("_T")

#: Models that are evaluated on the test split.
Choice = Literal["last", "best", "mean_last", "test"]
OnBroken = Literal["error", "skip"]


def read_settings(kind: type[_T], config: DictConfig | Mapping[str, Any], place: str = "") -> _T:
    """The settings of a verb from its configuration; other keys are passed over.

    Args:
        kind: a dataclass of this module.
        config: resolved.
        place: dotted key of `config` in the whole.

    Raises:
        UserError: a value that a field does not allow, with the key's full name.
    """
    from omegaconf import DictConfig, OmegaConf

    given: Any = OmegaConf.to_container(config) if isinstance(config, DictConfig) else config
    values: dict[str, Any] = {}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        if isinstance(hint, type) and is_dataclass(hint):
            inner = given.get(name)
            if not isinstance(inner, Mapping):
                raise ArgumentError(name, inner, "must be a mapping").below(place)
            values[name] = read_settings(hint, inner, f"{place}.{name}" if place else name)
        elif name in given:
            values[name] = given[name]
        elif not hasattr(kind, name):
            key = f"{place}.{name}" if place else name
            raise UserError(f"A value for '{key}' is needed: add {key}=... to the command.")
    try:
        return kind(**values)
    except ArgumentError as error:
        raise error.below(place) from None


@dataclass(frozen=True)
class _Settings:
    """Base of settings that compare themselves with their annotations."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class TrainerSettings(_Settings):
    """Those settings of the trainer that decide what is started and when it ends."""

    max_epochs: Count | Literal[-1] | None = None
    max_steps: Count | Literal[-1] = -1
    limit_train_batches: Count | Annotated[float, Interval(gt=0, le=1)] | None = None
    devices: Count | list[WholeNonNegative] | Literal["auto", -1] = 1
    num_nodes: Count = 1
    accelerator: str = "cpu"


@dataclass(frozen=True)
class Places(_Settings):
    """``paths``: where data sets, caches and results lie."""

    data: str
    cache: str
    output: str


@dataclass(frozen=True)
class PlacesOnly(_Settings):
    """The part of a verb's settings that is read before the others."""

    paths: Places


@dataclass(frozen=True)
class TrainData(_Settings):
    """``data`` of a training run."""

    eval_batch_size: Count
    num_workers: WholeNonNegative
    on_broken: OnBroken
    train_size: Count | None
    train_seed: Seed
    noisy_val: bool | Literal["auto"]
    planted_errors: OpenShare
    open_set_source: Any
    labelled_size: Count | None = None
    labelled_fraction: Annotated[float, Interval(gt=0, le=1)] | None = None
    labelled_keys: str | None = None
    labelled_seed: Seed = 0
    labelled_holdout: OpenShare = 0.0


@dataclass(frozen=True)
class Warmup(_Settings):
    """``selection`` of a training run."""

    warmup_steps: WholeNonNegative
    warmup_share: OpenShare
    ranking: Literal["all_epochs", "last_epoch"]


@dataclass(frozen=True)
class TrainSettings(_Settings):
    """Settings of ``noisyml train``."""

    name: str | int | float
    seed: Seed
    model_choice: list[Choice] | Choice
    mean_last_epochs: Count
    resume: str | None
    run_dir: str | None
    init_from: str | None
    previous_run: str | None
    report: bool
    data: TrainData
    selection: Warmup
    trainer: TrainerSettings
    memory: Any = None
    param_groups: Mapping[str, Any] | None = None
    adopt: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_name(self.name)
        if self.trainer.max_epochs in (None, -1) and self.trainer.max_steps == -1:
            raise UserError(
                "The run would never end: give trainer.max_epochs or trainer.max_steps a number."
            )
        if not self.model_choice:
            raise UserError(
                "model_choice=[] evaluates no model: write e.g. model_choice=[last,best]."
            )
        epochs = self.trainer.max_epochs
        if "mean_last" in self.choices and epochs and 0 < epochs < self.mean_last_epochs:
            raise UserError(
                f"model_choice=mean_last averages over the last {self.mean_last_epochs} epochs "
                f"(mean_last_epochs), and the run has {epochs}: give 1 up to that."
            )

    @property
    def choices(self) -> list[str]:
        """`model_choice` as a list."""
        typed = self.model_choice
        return [typed] if isinstance(typed, str) else list(typed)


@dataclass(frozen=True)
class EmbedData(_Settings):
    """``data`` of an embedding."""

    eval_batch_size: Count
    num_workers: WholeNonNegative
    on_broken: OnBroken


@dataclass(frozen=True)
class EmbedSettings(_Settings):
    """Settings of ``noisyml embed``."""

    name: str | int | float
    checkpoint: str | None
    which: str
    splits: list[str] | str | None
    dtype: Literal["float32", "float16"]
    rows_per_shard: Count
    feature_cache: bool
    knn: Count | None
    seed: Seed
    resume: str | None
    run_dir: str | None
    data: EmbedData
    trainer: TrainerSettings

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_name(self.name)
        if self.splits is not None and not len(self.splits):
            raise UserError("splits=[] embeds nothing: name splits, or say splits=null for all.")


@dataclass(frozen=True)
class CleanData(_Settings):
    """``data`` of an audit of labels."""

    eval_batch_size: Count
    num_workers: WholeNonNegative


@dataclass(frozen=True)
class CleanSettings(_Settings):
    """Settings of ``noisyml clean``, but for those of `noisyml.audit.report.AuditSettings`."""

    name: str | int | float
    splits: list[str] | str | None
    decisions: str | None
    against: str | None
    probabilities: str | None
    trained: str | None
    resume: str | None
    run_dir: str | None
    data: CleanData
    trainer: TrainerSettings

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_name(self.name)
        if self.splits is not None and not len(self.splits):
            raise UserError("splits=[] judges nothing: name splits, or say splits=null for all.")


@dataclass(frozen=True)
class EvaluateSettings(_Settings):
    """Settings of ``noisyml evaluate``."""

    name: str | int | float
    checkpoint: str
    which: str
    images: str | None = None
    classes: str | None = None
    templates: str | None = None
    template_set: str = ""
    ensemble: Literal["mean", "max", "none"] | None = None
    labels: str | None = None
    candidates: Literal["all", "labelled"] = "all"
    k: Count = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [name for name in ("classes", "templates", "labels") if getattr(self, name)]
        if given and self.images is None:
            raise UserError(f"{given[0]}=... belongs to images=FOLDER: say which pictures to name.")
        if self.candidates == "labelled" and self.labels is None:
            raise UserError(
                "candidates=labelled chooses among the classes that occur in labels=FILE: give it."
            )


@dataclass(frozen=True)
class KnnSettings(_Settings):
    """Settings of ``noisyml knn``, but for those of `noisyml.embeddings.neighbours`."""

    name: str | int | float
    embeddings: str
    split: str | None
    gallery: str | None
    gallery_split: str | None


@dataclass(frozen=True)
class DataSettings(_Settings):
    """Settings of ``noisyml data``."""

    name: str | int | float
    workers: Count
    classes: Count
    instances: Count
    tile: Count


def _check_name(name: str | int | float) -> None:
    if not str(name).strip("/"):
        raise UserError("name= is empty: give the run a name, it becomes a folder.")

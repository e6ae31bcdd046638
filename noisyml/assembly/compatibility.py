"""Combinations that compose but cannot work, refused in one sentence.

Methods, selectors, losses, transforms and evaluators declare what they need and give on their
classes; nothing is built to be asked. `check_parts` runs before data is read, `check_data` once
their labels are known.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable

from omegaconf import DictConfig

from noisyml.assembly.nodes import ask, declared, nodes_of, settings
from noisyml.data.base import Split
from noisyml.data.datamodule import DataModule
from noisyml.errors import UserError
from noisyml.losses.base import EmbeddingLoss
from noisyml.methods.base import Method
from noisyml.metrics.base import Evaluator
from noisyml.models.backbones.base import Backbone
from noisyml.selectors.base import Selector
from noisyml.selectors.keep_all import KeepAll
from noisyml.targets import TARGETS, Target, TargetKind

#: Mappings at the top of the configuration of a run.
PARTS = (
    *("dataset", "transform", "noise", "sampler", "backbone", "head", "optimizer", "scheduler"),
    *("trainer", "callbacks", "logger", "evaluators", "selector", "loss", "method", "memory"),
    *("param_groups", "paths"),
)


def check_parts(config: DictConfig, *, training: bool = True) -> None:
    """Refuse parts that do not go together.

    Args:
        config: of a run.
        training: False: what only training needs may be wrong.

    Raises:
        UserError: such a combination.
    """
    for part in PARTS:
        if config.get(part) is not None and not isinstance(config[part], DictConfig):
            raise UserError(
                f"{part}={config[part]} stands where settings belong: choose an option of its "
                f"group (`noisyml list`), or change one of them ({part}.KEY=VALUE)."
            )
    method = _method(config)
    _check_settings(method, config)
    given = set(method.evidence) | _check_loss(method, config)
    _check_selector(method, given, config)
    evaluators = _evaluators(config)
    if not evaluators:
        raise UserError("The run has no evaluator: choose one, e.g. evaluator=retrieval.")
    for evaluator in evaluators:
        if lacking := sorted(evaluator.needs - method.gives):
            raise UserError(
                f"{evaluator.__name__} evaluates {' and '.join(lacking)}, which "
                f"{method.__name__} does not give: choose another evaluator=... or "
                f"method=classification."
            )
    if training:
        _check_views(method, config)


def check_data(config: DictConfig, data: DataModule, *, training: bool = True) -> None:
    """Refuse data that method or evaluators cannot use.

    Args:
        config: of a run.
        data: with labels.
        training: False: what only training needs may be wrong.

    Raises:
        UserError: such a combination.
    """
    method, evaluators = _method(config), _evaluators(config)
    _check_targets(method, evaluators, data.target)
    _check_labelled(evaluators, data)
    if any("logits" in evaluator.needs for evaluator in evaluators):
        _check_classes(data)
    if training and method.trains_on_val:
        _check_trusted(method, config, data)


def check_inputs(backbone: Backbone, data: DataModule) -> None:
    """Refuse a backbone that takes other inputs than the data set gives.

    Raises:
        UserError: images for vectors, or the other way round.
    """
    kind = data.splits["train"].inputs.kind
    if backbone.takes != kind:
        raise UserError(
            f"The data set gives {kind}, and the backbone takes {backbone.takes}: choose another "
            f"backbone=..., or another dataset=..."
            + (" (backbone=vectors hands vectors on)." if kind == "vectors" else "")
        )


# -- parts -------------------------------------------------------------------------------------


def _method(config: DictConfig) -> type[Method]:
    return declared(config.method)


def _evaluators(config: DictConfig) -> list[type[Evaluator]]:
    return [declared(node) for node in nodes_of(config.evaluators).values()]


def _check_settings(method: type[Method], config: DictConfig) -> None:
    takes = inspect.signature(method).parameters
    for name in settings(config.method):
        if name not in takes:
            raise UserError(f"{method.__name__} has no setting '{name}': leave out {name}=...")


def _check_loss(method: type[Method], config: DictConfig) -> frozenset[str]:
    """Evidence that the loss gives a selector."""
    name, node = method.__name__, config.get("loss")
    loss = None if node is None else declared(node)
    if "loss" not in method.needs_parts:
        if loss is not None:
            raise UserError(f"{name} brings a loss of its own and takes none: leave out loss=...")
        return frozenset()
    if loss is None or not issubclass(loss, method.takes_loss):
        found = "there is none" if loss is None else f"{loss.__name__} is none"
        raise UserError(
            f"{name} trains with {method.takes_loss.kind}, and {found}: choose one by loss=... "
            f"(`noisyml list losses`)."
        )
    if not issubclass(loss, EmbeddingLoss):
        return frozenset()
    declares = ask(loss.declares, node)
    if "memory" in declares.needs - method.needs_parts:
        raise UserError(
            f"{loss.__name__} reads a memory, and {name} keeps none: choose another loss=..."
        )
    return declares.gives


def _check_selector(method: type[Method], given: set[str], config: DictConfig) -> None:
    name, selector = method.__name__, declared(config.selector)
    if "selector" not in method.needs_parts:
        if not issubclass(selector, KeepAll):
            raise UserError(f"{name} asks no selector: leave out selector=...")
        return
    if not issubclass(selector, Selector):
        raise UserError(f"{selector.__name__} is not a selector (`noisyml list selectors`).")
    judged = method.target_kinds if method.judged_kinds is None else method.judged_kinds
    if not judged <= selector.target_kinds:
        raise UserError(
            f"{selector.__name__} judges {_words(selector.target_kinds)}, and {name} learns from "
            f"{_words(judged)}: choose another selector=..., e.g. selector=keep_all."
        )
    lacking = sorted(selector.needs - given)
    if lacking == ["proxies"]:
        loss = "the loss" if config.get("loss") is None else declared(config.loss).__name__
        raise UserError(
            f"{selector.__name__} compares samples with the loss's class proxies, and {loss} has "
            f"none: choose e.g. loss=proxy_nca or another selector=..."
        )
    if lacking:
        raise UserError(
            f"{selector.__name__} judges samples by {' and '.join(lacking)}, which {name} does not "
            f"provide: choose another selector=... (`noisyml list selectors`)."
        )


def _check_views(method: type[Method], config: DictConfig) -> None:
    transform = declared(config.transform)
    possible = ask(method.views_of, config.method)
    if transform.n_views in possible:
        return
    wanted = next(iter(possible))
    what = "one view" if wanted == 1 else f"{wanted} views"
    raise UserError(
        f"{method.__name__} trains on {what} of each image, and {transform.__name__} makes "
        f"{transform.n_views}: choose another transform=... (`noisyml list transforms`)."
    )


# -- data --------------------------------------------------------------------------------------


def _words(kinds: Iterable[TargetKind]) -> str:
    return " or ".join(TARGETS[kind].words for kind in sorted(kinds))


def _check_targets(
    method: type[Method], evaluators: Iterable[type[Evaluator]], given: Target
) -> None:
    if given.name not in method.target_kinds:
        raise UserError(
            f"{method.__name__} learns from {_words(method.target_kinds)}, but the data set gives "
            f"{given.words}: choose another data set or e.g. method={given.example_method}."
        )
    for evaluator in evaluators:
        if given.name not in evaluator.target_kinds:
            raise UserError(
                f"{evaluator.__name__} compares with {_words(evaluator.target_kinds)}, but the "
                f"data set gives {given.words}: leave out evaluator=..., or choose another one."
            )


def _check_labelled(evaluators: Iterable[type[Evaluator]], data: DataModule) -> None:
    """Without labels nothing can be compared with them."""
    for evaluator in evaluators:
        if evaluator.reads_labels and not data.dataset.has_labels:
            raise UserError(
                f"{evaluator.__name__} compares with labels, and the data set has none: choose "
                f"evaluator=neighbours, which asks none, or name the labels (dataset.labels)."
            )


def _check_classes(data: DataModule) -> None:
    """Class scores mean something only on splits that have the classes of training."""
    train = data.splits["train"]
    if data.manifest.class_source is not None or data.num_classes != len(train.class_names):
        raise UserError(
            f"Noise {data.manifest.injector} renumbers the classes of training, so that a "
            f"classifier's answers are no classes of the test: choose another noise=..."
        )
    for name in ("val", *data.test_splits):
        split = data.splits.get(name)
        if split is not None and not _same_classes(train, split):
            raise UserError(
                f"The {name} split has other classes than training, which no classifier can name: "
                f"use dataset.split=closed_set if the data set has it, or evaluator=retrieval."
            )


def _same_classes(train: Split, split: Split) -> bool:
    """True if a split has the classes of training, or some of them under the same numbers."""
    same_names = list(split.class_names) == list(train.class_names)
    return same_names and bool((split.class_counts[train.class_counts > 0] > 0).any())


def _check_trusted(method: type[Method], config: DictConfig, data: DataModule) -> None:
    """Labels of the validation split that teach must be official and clean, and choose nothing."""
    name = method.__name__
    if not data.dataset.clean_val or "val" not in data.splits:
        raise UserError(
            f"{name} learns from trusted labels, and {type(data.dataset).__name__} brings no clean "
            f"validation split: use a data set that does (dataset=clothing1m, or dataset=glyphs "
            f"dataset.split=closed_set), or another method=..."
        )
    if data.noisy_val:
        raise UserError(
            f"{name} learns from trusted labels, and data.noisy_val=true makes those of the "
            f"validation split noisy: leave it at auto."
        )
    if data.manifest.class_source is not None or not _same_classes(
        data.splits["train"], data.splits["val"]
    ):
        raise UserError(
            f"{name} learns from the validation split, whose classes are not those of training: "
            f"use dataset.split=closed_set if the data set has it, and noise that keeps classes."
        )
    if "best" in config.model_choice:
        raise UserError(
            f"{name} learns from the validation split, so that no model can be chosen by it: "
            f"leave best out of model_choice, e.g. model_choice=[last]."
        )

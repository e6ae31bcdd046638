"""From a composed configuration to objects; `noisyml train` and `noisyml evaluate` share it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.utils import get_class, get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from noisyml.data.base import Split
from noisyml.data.datamodule import DataModule
from noisyml.data.transforms.image import ViewMaker
from noisyml.errors import UserError
from noisyml.losses.base import EmbeddingLoss
from noisyml.methods.base import Method, load_encoder
from noisyml.methods.classification.base import load_classifier
from noisyml.metrics.base import Evaluator, needed_outputs
from noisyml.models.backbones.base import Backbone
from noisyml.models.encoder import Encoder
from noisyml.models.teacher import Teacher
from noisyml.runs.folder import locate_checkpoint
from noisyml.selectors.base import Selector
from noisyml.selectors.keep_all import KeepAll
from noisyml.targets import TARGETS


def build(config: DictConfig, **available: Any) -> Any:
    """Instantiate a config node, adding those of `available` that its target takes.

    Config keys equal constructor arguments; what a constructor needs beyond them (the encoder, the
    number of classes) is known only at run time and is passed by name, if it asks for it.
    """
    takes = inspect.signature(get_object(str(config["_target_"]))).parameters
    # Lists and mappings of the YAML arrive as plain Python ones.
    extra = {name: value for name, value in available.items() if name in takes}
    return instantiate(config, **extra, _convert_="all")


def build_optional(config: DictConfig | None, **available: Any) -> Any:
    """`build`, or None where there is nothing to build."""
    return None if config is None else build(config, **available)


@dataclass(frozen=True)
class Assembly:
    """What a run needs, labels prepared and weights initialised."""

    data: DataModule
    method: Method


def data_module(config: DictConfig, **overrides: Any) -> DataModule:
    """The data module of a configuration; labels are not prepared yet."""
    source = config.data.open_set_source
    return DataModule(
        dataset=build(config.dataset),
        noise=build(config.noise),
        transform=build(config.transform),
        sampler=build(config.sampler),
        seed=config.seed,
        cache_dir=config.paths.cache,
        eval_batch_size=config.data.eval_batch_size,
        num_workers=config.data.num_workers,
        on_broken=config.data.on_broken,
        noisy_val=config.data.noisy_val,
        open_set_source=None if source is None else build(source),
        train_size=config.data.get("train_size"),
        train_seed=config.data.get("train_seed", 0),
        pin_memory=config.trainer.accelerator == "gpu",
        **overrides,
    )


def assemble(config: DictConfig, *, training: bool = True, **data_settings: Any) -> Assembly:
    """Data and method, in the order in which they need each other.

    Args:
        config: of a run.
        training: False leaves out what only training needs (a teacher).
        **data_settings: further arguments of the data module.

    Raises:
        UserError: data missing, or parts that do not go together.
    """
    check_model_choice(config)
    data = data_module(config, **data_settings)
    check_parts(config)
    evaluators = build_evaluators(config)
    check_outputs(config, evaluators, build_optional(config.get("distillation")))
    if training:
        check_views(config, data.transform)
    backbone = build(config.backbone)
    # Erased pixels take the colour that this backbone's normalisation turns into 0.
    data.transform = build(config.transform, mean_colour=backbone.mean_colour)
    data.prepare_labels(backbone if backbone.frozen else None)
    check_labels(config, data, evaluators)
    check_classes(data, evaluators)
    if training:
        check_trusted(config, data)
    for evaluator in evaluators.values():
        evaluator.class_names = data.class_names
    if backbone.frozen:
        data.use_features_of(backbone)

    encoder = Encoder(backbone, build(config.head, in_features=backbone.out_features))
    pseudo_labels = None
    num_classes = data.num_classes
    if config.get("pseudo_labels") is not None:
        pseudo_labels = build(config.pseudo_labels, num_samples=len(data.splits["train"]))
        num_classes = pseudo_labels.num_clusters
    sizes = {
        "num_classes": num_classes,
        "embedding_size": encoder.out_features,
        "num_samples": len(data.splits["train"]),
    }
    loss = build_optional(config.get("loss"), **sizes)
    selector = build(config.selector, **sizes)
    data.validate_on_test = "test" in config.model_choice
    extra: dict[str, Any] = {}
    if "peer" in _arguments(config):
        # A frozen network is one for both; else each starts from weights of its own.
        body = backbone if backbone.frozen else build(config.backbone)
        extra["peer"] = Encoder(body, build(config.head, in_features=body.out_features))
    if "memory" in _arguments(config):
        extra["memory"] = build(
            config.memory,
            size=config.memory.size or len(data.splits["train"]),
            dim=encoder.out_features,
            num_classes=num_classes,
        )
    distillation = build_optional(config.get("distillation"))
    if distillation is not None:
        extra["distillation"] = distillation
    if config.get("teacher") is not None:
        scores = distillation is not None and distillation.needs_logits
        classes = data.class_names if scores else None
        extra["teacher"] = build_teacher(config.teacher, backbone, classes) if training else None
    method = build(
        config.method,
        encoder=encoder,
        loss=loss,
        selector=selector,
        class_names=data.class_names,
        optimizer=build(config.optimizer),
        scheduler=None if config.scheduler is None else build(config.scheduler),
        evaluator=evaluators,
        pseudo_labels=pseudo_labels,
        **extra,
        **sizes,
    )
    return Assembly(data, method)


def build_evaluators(config: DictConfig) -> dict[str, Evaluator]:
    """The evaluators of a configuration by name.

    Raises:
        UserError: there is none.
    """
    if "evaluators" not in config:
        raise UserError(
            "The configuration was written by an earlier version of noisyml: it has no evaluators. "
            "Start a new run with the same settings."
        )
    nodes = config.evaluators or {}
    evaluators = {str(name): build(node) for name, node in nodes.items() if node is not None}
    if not evaluators:
        raise UserError("The run has no evaluator: choose one, e.g. evaluator=retrieval.")
    return evaluators


def build_teacher(
    settings: DictConfig, student: Backbone, class_names: Sequence[str] | None = None
) -> Teacher:
    """The frozen model of an earlier run.

    Args:
        settings: ``checkpoint`` (a run folder or a checkpoint in it) and ``which``.
        student: the backbone of the network it is to teach.
        class_names: the classes it must tell apart; None: its encoder is enough.

    Raises:
        UserError: no teacher is named, it is not there, has no such classifier, or cannot see what
            the student sees.
    """
    if settings.checkpoint is None:
        raise UserError(
            "The student has no teacher: name a run by teacher.checkpoint=RUN_DIR, or train one "
            "first with stages=teacher (a classifier: stages=classification_teacher)."
        )
    run, file = locate_checkpoint(Path(settings.checkpoint), settings.which)
    config = OmegaConf.load(run.config_file)
    assert isinstance(config, DictConfig)
    if config.backbone.get("weights") is not None and not config.backbone.get("frozen"):
        # The checkpoint has them all; the file they started from need not be here any more.
        config.backbone.weights = None
    backbone = build(config.backbone)
    encoder = Encoder(backbone, build(config.head, in_features=backbone.out_features))
    load_encoder(encoder, file)
    same = backbone.frozen and backbone.fingerprint() == student.fingerprint()
    if student.frozen and not same:
        raise UserError(
            "A frozen student hands on cached features, which mean nothing to a teacher with "
            "another backbone: say backbone.frozen=false."
        )
    classifier = None if class_names is None else load_classifier(file, class_names)
    return Teacher(encoder, classifier)


def check_outputs(
    config: DictConfig, evaluators: Mapping[str, Evaluator], distillation: Any
) -> None:
    """Refuse an evaluator or a distillation that asks for what the method does not compute.

    Raises:
        UserError: such a combination.
    """
    method: type[Method] = get_class(str(config.method["_target_"]))
    for evaluator in evaluators.values():
        if lacking := sorted(evaluator.needs - method.gives):
            raise UserError(
                f"{type(evaluator).__name__} evaluates {' and '.join(lacking)}, which "
                f"{method.__name__} does not give: choose another evaluator=... or "
                f"method=classification."
            )
    if distillation is not None and distillation.needs_logits and "logits" not in method.gives:
        raise UserError(
            f"The distillation compares class scores, and {method.__name__} gives none: choose "
            f"another distillation=... or method=rkd_classification."
        )


def check_views(config: DictConfig, transform: ViewMaker) -> None:
    """Refuse a transform that makes fewer or more views of an image than the method compares.

    Raises:
        UserError: such a combination.
    """
    method: type[Method] = get_class(str(config.method["_target_"]))
    if transform.n_views == method.n_views:
        return
    what = "one view" if method.n_views == 1 else f"{method.n_views} views"
    raise UserError(
        f"{method.__name__} trains on {what} of each image, and {type(transform).__name__} makes "
        f"{transform.n_views}: choose another transform=... (`noisyml list transforms`)."
    )


def check_labels(config: DictConfig, data: DataModule, evaluators: Mapping[str, Evaluator]) -> None:
    """Refuse a method or an evaluator for another kind of labels than the data set gives.

    Raises:
        UserError: such a combination.
    """
    method: type[Method] = get_class(str(config.method["_target_"]))
    given = data.target
    if given.name not in method.target_kinds:
        raise UserError(
            f"{method.__name__} learns from {TARGETS[min(method.target_kinds)].words}, but the "
            f"data set gives {given.words}: choose another data set or e.g. "
            f"method={given.example_method}."
        )
    for evaluator in evaluators.values():
        if given.name not in evaluator.target_kinds:
            own = TARGETS[min(evaluator.target_kinds)]
            raise UserError(
                f"{type(evaluator).__name__} compares with {own.words}, but the data set gives "
                f"{given.words}: leave out evaluator=..., or choose another one."
            )


def check_classes(data: DataModule, evaluators: Mapping[str, Evaluator]) -> None:
    """Class scores mean something only on splits that have the classes of training.

    Raises:
        UserError: a split with other classes, or noise that renumbers those of training.
    """
    if "logits" not in needed_outputs(evaluators):
        return
    train = data.splits["train"]
    if data.manifest.class_source is not None or data.num_classes != len(train.class_names):
        raise UserError(
            f"Noise {data.manifest.injector} renumbers the classes of training, so that a "
            f"classifier's answers are no classes of the test: choose another noise=..."
        )
    for name in ("val", *data.test_splits):
        split = data.splits.get(name)
        if split is None:
            continue
        if not _same_classes(train, split):
            raise UserError(
                f"The {name} split has other classes than training, which no classifier can name: "
                f"use dataset.split=closed_set if the data set has it, or evaluator=retrieval."
            )


def _same_classes(train: Split, split: Split) -> bool:
    """True if a split has the classes of training, or some of them under the same numbers."""
    same_names = list(split.class_names) == list(train.class_names)
    return same_names and bool((split.class_counts[train.class_counts > 0] > 0).any())


def check_trusted(config: DictConfig, data: DataModule) -> None:
    """Refuse to learn from validation labels that are not trusted, or to choose a model by them.

    Raises:
        UserError: a method that learns from the validation split, and no such split that is clean
            and of the same classes, or a choice of models on it.
    """
    method: type[Method] = get_class(str(config.method["_target_"]))
    if not method.trains_on_val:
        return
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


def check_model_choice(config: DictConfig) -> None:
    """Refuse model choices that do not exist."""
    if isinstance(config.model_choice, str):
        config.model_choice = [config.model_choice]
    unknown = set(config.model_choice) - {"last", "best", "mean_last", "test"}
    if unknown or not config.model_choice:
        raise UserError(
            f"model_choice={list(config.model_choice)} is not a list made of last, best, mean_last "
            f"and test; write e.g. model_choice=[last,best]."
        )
    if "mean_last" not in config.model_choice:
        return
    wanted, epochs = config.mean_last_epochs, config.trainer.max_epochs
    if wanted < 1 or (epochs is not None and 0 < epochs < wanted):
        raise UserError(
            f"model_choice=mean_last averages over the last {wanted} epochs (mean_last_epochs), "
            f"and the run has {epochs}: give 1 up to that."
        )


def check_parts(config: DictConfig) -> None:
    """Refuse combinations that compose but cannot work, in one sentence, before data is read.

    Raises:
        UserError: the selector needs what method and loss do not give, or the loss is of another
            kind.
    """
    # Small stand-ins tell what the real ones will need and give.
    toy = {"num_classes": 2, "embedding_size": 2}
    selector = build(config.selector, **toy)
    node = config.get("loss")
    loss_type: type | None = None if node is None else get_class(str(node["_target_"]))
    method: type[Method] = get_class(str(config.method["_target_"]))
    takes = _arguments(config)
    name = method.__name__
    if "loss" not in takes and loss_type is not None:
        raise UserError(f"{name} brings a loss of its own and takes none: leave out loss=...")
    if "loss" in takes and not (loss_type and issubclass(loss_type, method.takes_loss)):
        found = "there is none" if loss_type is None else f"{loss_type.__name__} is none"
        raise UserError(
            f"{name} trains with {method.takes_loss.kind}, and {found}: choose one by loss=... "
            f"(`noisyml list losses`)."
        )
    loss = None
    if loss_type is not None and issubclass(loss_type, EmbeddingLoss):
        loss = build(node, **toy)
        if "memory" in loss.needs and "memory" not in takes:
            raise UserError(
                f"{loss_type.__name__} reads a memory, and {name} keeps none: choose another "
                f"loss=..."
            )
    if config.get("pseudo_labels") is not None and "pseudo_labels" not in takes:
        raise UserError(f"{name} does not train on pseudo-labels: leave out pseudo_labels=...")
    if "selector" not in takes:
        if not isinstance(selector, KeepAll):
            raise UserError(f"{name} asks no selector: leave out selector=...")
        return
    if not isinstance(selector, Selector):
        raise UserError(f"{type(selector).__name__} is not a selector (`noisyml list selectors`).")
    if not method.target_kinds <= selector.target_kinds:
        raise UserError(
            f"{type(selector).__name__} judges {TARGETS[min(selector.target_kinds)].words}, and "
            f"{name} learns from {TARGETS[min(method.target_kinds)].words}: choose another "
            "selector=..., e.g. selector=keep_all."
        )
    given = set(method.evidence)
    if loss is not None and loss.has_proxies:
        given.add("proxies")
    lacking = sorted(selector.needs - given)
    if lacking == ["proxies"]:
        raise UserError(
            f"{type(selector).__name__} compares samples with the loss's class proxies, and "
            f"{type(loss).__name__} has none: choose e.g. loss=proxy_nca or another selector=..."
        )
    if lacking:
        raise UserError(
            f"{type(selector).__name__} judges samples by {' and '.join(lacking)}, which {name} "
            f"does not provide: choose another selector=... (`noisyml list selectors`)."
        )
    if config.method.get("enqueue") == "before" and selector.needs:
        raise UserError(
            f"method.enqueue=before puts the batch into the memory before "
            f"{type(selector).__name__} judges it, so that every sample vouches for itself: use "
            f"selector=keep_all."
        )


def _arguments(config: DictConfig) -> Mapping[str, Any]:
    """What the method's constructor takes, by name."""
    return inspect.signature(get_class(str(config.method["_target_"]))).parameters

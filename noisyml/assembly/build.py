"""From a composed configuration to data and method; every verb that needs them shares it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from omegaconf import DictConfig

from noisyml.assembly import compatibility
from noisyml.assembly.nodes import ask, build, build_optional, declared, nodes_of, settings
from noisyml.data.datamodule import DataModule
from noisyml.data.labelled import LabelledPart
from noisyml.errors import UserError
from noisyml.methods.base import Method
from noisyml.methods.parts import Parts, Sizes
from noisyml.metrics.base import Evaluator
from noisyml.models.backbones.base import Backbone
from noisyml.models.encoder import Encoder
from noisyml.models.heads import Head
from noisyml.similarity.memory_bank import MemoryBank


@dataclass(frozen=True)
class Assembly:
    """Data and method of a run, labels prepared and weights initialised."""

    data: DataModule
    method: Method


def assemble(config: DictConfig, *, training: bool = True, **data_settings: Any) -> Assembly:
    """Data and method, in the order in which they need each other.

    Args:
        config: of a run.
        training: False leaves out what only training needs (a teacher).
        **data_settings: further arguments of the data module.

    Raises:
        UserError: data missing, or parts that do not go together.
    """
    compatibility.check_parts(config, training=training)
    data = data_module(config, **data_settings)
    backbone = build(config.backbone, vector_size=data.dataset.vector_size)
    # Erased pixels take the colour that this backbone's normalisation turns into 0.
    data.transform = build(config.transform, mean_colour=backbone.mean_colour)
    data.prepare_labels(backbone if backbone.frozen else None)
    compatibility.check_data(config, data, training=training)
    compatibility.check_inputs(backbone, data)
    if backbone.frozen:
        data.use_features_of(backbone)
    data.validate_on_test = "test" in config.model_choice

    encoder = with_head(config, backbone)
    method: type[Method] = declared(config.method)
    data.pool = ask(method.pool, config.method)
    sizes = Sizes(
        num_classes=data.num_classes,
        embedding_size=encoder.out_features,
        num_samples=len(data.splits["train"]),
        class_names=data.class_names,
    )
    sizes = ask(method.adapt_sizes, config.method, sizes)
    made = {
        "loss": lambda: build_optional(config.get("loss"), **sizes.arguments),
        "selector": lambda: build(config.selector, **sizes.arguments),
        "memory": lambda: memory(config.memory, sizes),
    }
    needed = {name: make() for name, make in made.items() if name in method.needs_parts}
    parts = Parts(
        encoder=encoder,
        another_encoder=lambda: another_encoder(config, backbone, data.dataset.vector_size),
        optimizer=build(config.optimizer),
        scheduler=build_optional(config.scheduler),
        evaluators=build_evaluators(config, data),
        sizes=sizes,
        param_groups=settings(config.param_groups),
        training=training,
        **needed,
    )
    return Assembly(data, build(config.method, parts=parts))


def data_module(config: DictConfig, **overrides: Any) -> DataModule:
    """The data module of a configuration; labels are not prepared yet."""
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
        open_set_source=build_optional(config.data.open_set_source),
        train_size=config.data.get("train_size"),
        train_seed=config.data.get("train_seed", 0),
        labelled=LabelledPart(
            **{
                item.name: config.data[f"labelled_{item.name}"]
                for item in fields(LabelledPart)
                if f"labelled_{item.name}" in config.data
            }
        ),
        planted_errors=config.data.get("planted_errors", 0.0),
        pin_memory=config.trainer.accelerator == "gpu",
        **overrides,
    )


def with_head(config: DictConfig, backbone: Backbone) -> Encoder:
    """A backbone under the head of the configuration.

    Raises:
        UserError: the head is none.
    """
    head = build(config.head, in_features=backbone.out_features)
    if not isinstance(head, Head):
        raise UserError(
            f"head._target_={config.head._target_} is no head (noisyml.models.heads.Head): choose "
            f"one of `noisyml list heads`, or derive yours from it."
        )
    return Encoder(backbone, head)


def another_encoder(
    config: DictConfig, backbone: Backbone, vector_size: int | None = None
) -> Encoder:
    """A second network: a frozen backbone is one for both, else it has weights of its own."""
    if backbone.frozen:
        return with_head(config, backbone)
    return with_head(config, build(config.backbone, vector_size=vector_size))


def build_evaluators(config: DictConfig, data: DataModule) -> dict[str, Evaluator]:
    """The evaluators of a run by name, told the names of its classes, and judgements if any."""
    found = {name: build(node) for name, node in nodes_of(config.evaluators).items()}
    for evaluator in found.values():
        evaluator.know(data.class_names, data.dataset.judgements)
        evaluator.known_classes = data.known_classes.tolist()
    return found


def memory(node: DictConfig, sizes: Sizes) -> MemoryBank:
    """The memory of a configuration, as large as the training split unless it has a size."""
    size = sizes.num_samples if node.size is None else node.size
    bank: MemoryBank = build(node, size=size, dim=sizes.embedding_size, **sizes.arguments)
    return bank

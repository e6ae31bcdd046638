"""Runs of seconds: the settings of each method, and sweeps over them by one process or two."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

#: Settings of all runs that are compared.
SETTINGS = [
    "selection.warmup_steps=4",
    # Active pairs and kept sets are cut at thresholds, which magnifies rounding from step to step;
    # in double precision the two runs stay together long enough to be compared.
    "trainer.precision=64-true",
    "+memory.dtype=float64",
    "trainer.max_epochs=2",
    "callbacks.history.every_n_steps=1",
    "report=false",
]
#: Parts of a recipe unless it says otherwise.
PARTS = {"dataset": "digits", "noise": "symmetric", "backbone": "mlp"}


class Recipe(NamedTuple):
    """A short run.

    Attributes:
        parts: the option of each config group that differs from `PARTS`.
        settings: nested values on top.
        steps: per epoch.
    """

    parts: Mapping[str, str]
    settings: Mapping[str, Any]
    steps: int = 5


_SEVERAL = {"dataset": "mosaic", "noise": "multilabel_mixed"}
#: Five batches, the last of one image: the second of two ranks gets none.
_LONELY = {"sampler": {"batch_size": 32, "drop_last": False}}
_DIGITS = {"data": {"train_size": 129}, **_LONELY}
_MOSAIC = {
    "backbone": {"image_size": [8, 24]},
    "dataset": {"num_train": 129, "num_test": 100},
    **_LONELY,
}
_GLYPHS = {
    "backbone": {"image_size": 32},
    "dataset": {"split": "closed_set", "num_train_classes": 20, "min_faces": 16},
    "data": {"train_size": 65},
    **_LONELY,
}

_HEAD = {"out_features": 32, "hidden_features": 24, "bottleneck": 8}
_PROMPTED = {"backbone": {"width": 16, "depth": 2, "heads": 2}, "sampler": {"batch_size": 64}}
_CAPTIONS = {
    "backbone": {"image_size": 32},
    "dataset": {
        "num_train_classes": 20,
        "num_val_classes": 4,
        "num_test_classes": 10,
        "min_faces": 16,
    },
    "data": {"train_size": 65},
    **_LONELY,
}

_SECOND_STAGE: dict[str, Any] = {
    "method": {"alpha": 0.5, "pseudo": {"source": "${previous_run}"}},
    "stages": {"first": {"overrides": ["method.alpha=0.0", "method.pseudo.source=null"]}},
}

#: A line for each option of ``method``.
TINY: dict[str, Recipe] = {
    "prism": Recipe(
        {"selector": "prism_vmf", "loss": "memory_contrastive", "head": "mlp"},
        {
            "loss": {"relu_form": True},
            "head": {"hidden_features": [32], "out_features": 16},
        },
        8,
    ),
    "cbml": Recipe(
        {"pseudo_labels": "kmeans"}, {"method": {"pseudo_labels": {"num_clusters": 16}}}
    ),
    "iaa": Recipe({"selector": "prism_avg"}, {"method": {"start": 0.0, "update_every": 1}}),
    "proxynca_pp": Recipe({"selector": "prism_proxy"}, {"sampler": {"samples_per_class": 8}}),
    "insclr": Recipe(
        {"bank": "mining", "transform": "with_plain", "head": "mlp"},
        {
            "method": {
                "graph": {"stored": 30, "every_n_epochs": 1},
                "selection": "fixed",
                "bank": {"mining": "b+i_tr2_avg0.50_k05", "rows": 200},
            },
            "transform": {"image": {"size": 8}},
            "head": {"hidden_features": [32], "out_features": 16, "norm": "none"},
            "sampler": {"batch_size": 8},
        },
    ),
    "rkd": Recipe({"head": "mlp", "selector": "prism_avg", "stages": "teacher"}, {}),
    "rkd_classification": Recipe(
        {"stages": "classification_teacher", "selector": "prism_proxy"}, {}
    ),
    "classification": Recipe(
        {"selector": "curriculum", "loss": "sat"},
        {"selector": {"warmup_epochs": 1}, "loss": {"warmup_epochs": 0}},
    ),
    "cdr": Recipe(
        {"loss": "forward_correction", "selector": "bare"}, {"loss": {"estimation_epoch": 1}}
    ),
    "bare": Recipe({"loss": "elr"}, {}),
    "co_teaching": Recipe({}, {"method": {"num_gradual": 1}, **_DIGITS}),
    "co_teaching_plus": Recipe(
        {}, {"method": {"num_gradual": 1, "warmup_epochs": 1, "predict": "best"}}
    ),
    "jocor": Recipe({}, {"method": {"num_gradual": 1}, **_DIGITS}),
    "meta_reweighting": Recipe(
        {"dataset": "glyphs"}, {"method": {"trusted_batch_size": 16}, **_GLYPHS}, 3
    ),
    "meta_weight_net": Recipe(
        {"dataset": "glyphs"},
        # Steps large enough to show how the virtual one is shared.
        {"method": {"trusted_batch_size": 16, "virtual_lr": 0.1, "weight_lr": 0.1}, **_GLYPHS},
        3,
    ),
    "eac": Recipe(
        {"selector": "prism_proxy", "backbone": "small_cnn"},
        # Batch norm would see half a batch on each rank.
        {"backbone": {"widths": [8, 16], "halve_after": [1], "frozen_batchnorm": True}, **_DIGITS},
    ),
    # The last batch of one pair: the second of two ranks gets none.
    "otter": Recipe(
        {"dataset": "glyphs_captions", "noise": "caption_shuffle", "selector": "plan_mass"},
        {
            "method": {"text_encoder": {"width": 16, "layers": 1, "vocab_size": 200}},
            "selector": {"noise_rate": 0.2},
            **_CAPTIONS,
        },
        3,
    ),
    "multilabel": Recipe(
        {"loss": "multilabel_sat", **_SEVERAL}, {"loss": {"warmup_epochs": 1}, **_MOSAIC}
    ),
    # Samples left out at random.
    "rcml": Recipe(_SEVERAL, {"method": {"ranking": "random"}, **_MOSAIC}),
    # Two memories, and corrections in the second epoch.
    "ccml": Recipe(
        {"loss": "multilabel_elr", **_SEVERAL},
        {"method": {"flip_bound": 0.5, "flip_share": 0.5}, **_MOSAIC},
    ),
    # Wrong pairs, some of which are recognised in the graph and some by their codes.
    "tldr": Recipe(
        {"dataset": "digit_vectors", "backbone": "vectors"},
        {
            "method": {
                "projector": "mlp-1-32",
                "pair_noise_rate": 0.2,
                "graph": {"random_edges": 0.2, "min_shared": 1},
            },
            "head": {"architecture": "mlp-1-16", "out_features": 8},
            "scheduler": {"warmup_epochs": 0},
            "optimizer": {"lr": 5.0},
            "sampler": {"batch_size": 64},
        },
    ),
    "pca": Recipe(
        {"dataset": "digit_vectors", "backbone": "vectors"},
        {"method": {"whiten": True}, "head": {"out_features": 8}, "sampler": {"batch_size": 64}},
    ),
    "kmeans": Recipe({"dataset": "discovery_digits"}, {}),
    # Labels of some images alone, and a selector that doubts them.
    "gcd": Recipe(
        {"dataset": "discovery_digits", "backbone": "mlp", "selector": "small_loss"},
        {"method": {"projection": _HEAD}},
    ),
    "promptcal_contrast": Recipe(
        {"dataset": "discovery_digits", "backbone": "tiny_vit"},
        {"method": {"projection": _HEAD}, **_PROMPTED},
    ),
    # A memory that turns over, its affinity from the first epoch on, and few negatives. The rate is
    # small: of projections that are all alike, rounding would choose the neighbours.
    "promptcal": Recipe(
        {"dataset": "discovery_digits", "backbone": "tiny_vit", "selector": "curriculum"},
        {
            "method": {
                "projection": _HEAD,
                "bank": {"size": 192, "dtype": "float64"},
                "ramp_epochs": 0,
                "neighbours": 4,
                "num_negatives": 64,
            },
            "selector": {"warmup_epochs": 1},
            "optimizer": {"lr": 0.001},
            **_PROMPTED,
        },
    ),
    "simgcd": Recipe(
        {"dataset": "discovery_digits", "backbone": "mlp", "selector": "bare"},
        {"method": {"projection_hidden": 24, "projection_size": 8}},
    ),
    # A second stage that learns from human labels and from those of the first.
    "segmentation": Recipe(
        {
            "dataset": "glyph_pages",
            "noise": "mask_class_swap",
            "backbone": "small_cnn",
            "segmenter": "deeplab_v2",
        },
        {
            "method": {"segmenter": {"rates": [1, 2]}, **_SECOND_STAGE["method"]},
            "stages": _SECOND_STAGE["stages"],
            "data": {"labelled_fraction": 0.5},
            "backbone": {"widths": [8, 16], "halve_after": [1], "frozen_batchnorm": True},
            "dataset": {
                "side": 32,
                "letter_side": [16, 24],
                "num_train": 16,
                "num_val": 4,
                "num_test": 6,
            },
            "sampler": {"batch_size": 4, "batches_per_epoch": 5},
        },
    ),
    "self_training": Recipe(
        {"loss": "elr"},
        {
            **_SECOND_STAGE,
            "data": {"labelled_size": 60},
            "sampler": {"batch_size": 24, "batches_per_epoch": 5},
        },
    ),
    "jocor_multilabel": Recipe(_SEVERAL, {"method": {"gradual_epochs": 1, "tau": 0.2}, **_MOSAIC}),
}


def of_methods(table: Mapping[str, Recipe]) -> dict[str, Recipe]:
    """The recipes of a table like `TINY`, each with its method among its parts."""
    return {
        name: recipe._replace(parts={"method": name, **recipe.parts})
        for name, recipe in table.items()
    }


def write_recipes(recipes: Mapping[str, Recipe], folder: Path) -> None:
    """Write each recipe as an option of the group ``experiment``, named by `option_of`.

    Args:
        recipes: by name.
        folder: ``.../experiment``; made.
    """
    folder.mkdir(parents=True)
    for name, recipe in recipes.items():
        # The method comes first: it chooses parts itself.
        parts = PARTS | dict(recipe.parts)
        settings = dict(recipe.settings)
        if parts["backbone"] == "mlp":
            settings["backbone"] = {"hidden_features": [32]} | settings.get("backbone", {})
        chosen = dict(sorted(parts.items(), key=lambda part: part[0] != "method"))
        content = {
            "defaults": [{f"override /{group}": part} for group, part in chosen.items()],
            "noise": {"rate": 0.4},
            **settings,
            "trainer": {"limit_train_batches": recipe.steps},
        }
        text = "# @package _global_\n" + yaml.safe_dump(content, sort_keys=False)
        (folder / f"{option_of(name)}.yaml").write_text(text, encoding="utf-8")


def option_of(name: str) -> str:
    """The option of a recipe, which no experiment of the package may hide."""
    return f"tiny_{name}"

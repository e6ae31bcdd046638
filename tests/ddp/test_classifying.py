"""Two gloo processes learn wrong labels, one or several an image, exactly as one process does."""

import pytest
from support.equality import assert_equal, one_and_two

SEVERAL = {"dataset": "mosaic", "noise": "multilabel_mixed"}
#: Five batches, the last of one image: the second rank gets none.
LONELY = {"sampler": {"batch_size": 32, "drop_last": False}}
DIGITS = {"data": {"train_size": 129}, **LONELY}
MOSAIC = {
    "backbone": {"image_size": [8, 24]},
    "dataset": {"num_train": 129, "num_test": 100},
    **LONELY,
}
GLYPHS = {
    "backbone": {"image_size": 32},
    "dataset": {"split": "closed_set", "num_train_classes": 20, "min_faces": 16},
    "data": {"train_size": 65},
    **LONELY,
}

#: Recipe to (parts, settings, steps per epoch), see `one_and_two`.
RECIPES = {
    "co_teaching_plus": (
        {"method": "co_teaching_plus"},
        {"method": {"num_gradual": 1, "warmup_epochs": 1, "predict": "best"}},
        5,
    ),
    "jocor": ({"method": "jocor"}, {"method": {"num_gradual": 1}, **DIGITS}, 5),
    "bare-elr": ({"method": "bare", "loss": "elr"}, {}, 5),
    "curriculum-sat": (
        {"method": "classification", "selector": "curriculum", "loss": "sat"},
        {"selector": {"warmup_epochs": 1}, "loss": {"warmup_epochs": 0}},
        5,
    ),
    "cdr-forward": (
        {"method": "cdr", "loss": "forward_correction", "selector": "bare"},
        {"loss": {"estimation_epoch": 1}},
        5,
    ),
    # Two memories, and corrections in the second epoch.
    "ccml-elr": (
        {"method": "ccml", "loss": "multilabel_elr", **SEVERAL},
        {"method": {"flip_bound": 0.5, "flip_share": 0.5}, **MOSAIC},
        5,
    ),
    "multilabel-sat": (
        {"method": "multilabel", "loss": "multilabel_sat", **SEVERAL},
        {"loss": {"warmup_epochs": 1}, **MOSAIC},
        5,
    ),
    "jocor_multilabel": (
        {"method": "jocor_multilabel", **SEVERAL},
        {"method": {"gradual_epochs": 1, "tau": 0.2}, **MOSAIC},
        5,
    ),
    "meta_weight_net": (
        {"method": "meta_weight_net", "dataset": "glyphs"},
        # Steps large enough to show how the virtual one is shared.
        {"method": {"trusted_batch_size": 16, "virtual_lr": 0.1, "weight_lr": 0.1}, **GLYPHS},
        3,
    ),
    "eac": (
        {"method": "eac", "selector": "prism_proxy", "backbone": "small_cnn"},
        # Batch norm would see half a batch on each rank.
        {"backbone": {"widths": [8, 16], "halve_after": [1], "frozen_batchnorm": True}, **DIGITS},
        5,
    ),
}


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory):
    """Run folders of all recipes by one process and by two ranks."""
    return one_and_two(RECIPES, tmp_path_factory.mktemp("ddp"))


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("recipe", RECIPES)
def test_two_processes_equal_one(sweeps, recipe):
    assert_equal(*sweeps[recipe], RECIPES[recipe])

"""Two gloo processes learn embeddings exactly as one process does, and distil as it does."""

import subprocess
import sys

import pytest
from support.equality import SETTINGS, assert_equal, one_and_two

SMALL_HEAD = {"hidden_features": [32], "out_features": 16}

#: Recipe to (parts, settings, steps per epoch), see `one_and_two`.
RECIPES = {
    "vmf-memory": (
        {"selector": "prism_vmf", "loss": "memory_contrastive", "head": "mlp"},
        {"loss": {"relu_form": True}, "head": SMALL_HEAD},
        8,
    ),
    "avg-proxies": (
        {"selector": "prism_avg", "loss": "proxy_nca", "head": "mlp"},
        {"param_groups": {"loss": {"lr": 0.01}}, "head": SMALL_HEAD},
        8,
    ),
    "cbml-clusters": (
        {"method": "cbml", "pseudo_labels": "kmeans"},
        {"method": {"pseudo_labels": {"num_clusters": 16}}},
        5,
    ),
    "iaa": (
        {"method": "iaa", "selector": "prism_avg"},
        {"method": {"start": 0.0, "update_every": 1}},
        5,
    ),
    "proxynca_pp-proxies": (
        {"method": "proxynca_pp", "selector": "prism_proxy"},
        {"sampler": {"samples_per_class": 8}},
        5,
    ),
    "rkd": (
        {"method": "rkd", "head": "mlp", "selector": "prism_avg", "stages": "teacher"},
        {},
        5,
    ),
    "rkd_classification": (
        {
            "method": "rkd_classification",
            "stages": "classification_teacher",
            "selector": "prism_proxy",
        },
        {},
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


def test_a_batch_that_processes_cannot_share_is_refused(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "noisyml",
            "train",
            *SETTINGS,
            "dataset=digits",
            "trainer=ddp_cpu",
            "sampler=shuffle",
            "sampler.batch_size=33",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "cannot be divided among 2 processes" in done.stderr
    assert "Traceback" not in done.stderr

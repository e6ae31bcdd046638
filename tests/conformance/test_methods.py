"""Every method of conf/method keeps the contract, with a line of settings in `TINY`."""

import importlib

import pytest
from support import paths

from noisyml.conformance.recipes import TINY, Recipe, of_methods
from noisyml.conformance.suite import CHECKS, Suite

METHODS = sorted(path.stem for path in (paths.ROOT / "conf" / "method").glob("*.yaml"))
#: Batches of eight anchors.
_INSTANCES = {
    "head": {"hidden_features": [32], "out_features": 16, "norm": "none"},
    "sampler": {"batch_size": 8},
}
#: Combinations of parts that no line of `TINY` has.
COMBINATIONS = {
    "average_similarity_and_proxies": Recipe(
        {"method": "prism", "selector": "prism_avg", "loss": "proxy_nca", "head": "mlp"},
        {
            "param_groups": {"loss": {"lr": 0.01}},
            "head": {"hidden_features": [32], "out_features": 16},
        },
        8,
    ),
    # The baselines of InsCLR: a queue and a second encoder, and pairs of views alone.
    "insclr_moco": Recipe(
        {"method": "insclr", "objective": "moco", "head": "mlp"},
        {
            **_INSTANCES,
            "method": {
                "objective": {"queue": 20, "momentum": 0.5},
                "graph": {"stored": 30},
                "bank": None,
            },
        },
    ),
    "insclr_simclr": Recipe(
        {"method": "insclr", "objective": "simclr", "head": "mlp"},
        {**_INSTANCES, "method": {"pairs": "views", "num_neighbours": 1, "bank": None}},
    ),
}
#: Selectors that watch a training, each under a method that has what it reads.
WATCHING = {
    "knn_vote": Recipe({"method": "prism", "selector": "knn_vote", "head": "mlp"}, {}, 8),
    **{
        name: Recipe(
            {"method": "classification", "selector": name}, {"selector": {"warmup_epochs": 1}}
        )
        for name in ("loss_mixture", "aum", "learnt")
    },
}


def command(arguments):
    """A whole command in this process."""
    verb, *rest = arguments
    return importlib.import_module(f"noisyml.apps.{verb}").main(list(rest))


@pytest.fixture(scope="module")
def suite(request, tmp_path_factory):
    """The runs of the methods that were asked for (``-k``)."""
    calls = [getattr(item, "callspec", None) for item in request.session.items]
    chosen = {call.params["method"] for call in calls if call and "check" in call.params}
    known = of_methods(TINY) | COMBINATIONS | WATCHING
    recipes = {name: recipe for name, recipe in known.items() if name in chosen}
    folder = tmp_path_factory.mktemp("conformance")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("NOISYML_CACHE", str(folder / "cache"))
        yield Suite(recipes, folder, command)


def test_every_method_has_its_line_and_no_line_is_stale():
    assert sorted(TINY) == METHODS


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "method",
    [
        *METHODS,
        *(pytest.param(name, marks=pytest.mark.further) for name in COMBINATIONS),
        *(pytest.param(name, marks=pytest.mark.slow) for name in WATCHING),
    ],
)
@pytest.mark.parametrize("check", CHECKS)
def test_contract(suite, check, method):
    assert method in {*TINY, *COMBINATIONS, *WATCHING}, (
        f"give {method} a line in TINY, noisyml/conformance/recipes.py"
    )
    CHECKS[check](suite, method)

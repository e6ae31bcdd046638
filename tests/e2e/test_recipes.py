"""Every recipe of a comparison trains, and a sweep over them is told apart by name."""

import pytest
import yaml
from support import paths

RECIPES = sorted(file.stem for file in (paths.CONF / "recipe").glob("*.yaml"))


#: Needs a network that tells classes apart, or a matrix that is given.
BACKWARD = "backward_correction"
TINY = [
    "dataset=digits",
    "noise=symmetric_half",
    "backbone=small_cnn",
    "backbone.widths=[4]",
    "data.train_size=64",
    "dataset.val_fraction=0",
    "dataset.test_fraction=0.05",
    "model_choice=[last]",
    "callbacks.checkpoint=null",
    # Some begin their own rule in the sixth epoch.
    "trainer.max_epochs=6",
]


@pytest.mark.further
@pytest.mark.usefixtures("undrawn")
def test_one_sweep_trains_them_all(shell):
    sweep = ",".join(name for name in RECIPES if name != BACKWARD)
    status, said = shell("train", "-m", f"recipe={sweep}", *TINY)
    assert status == 0, said
    chosen = [yaml.safe_load((run / "choices.yaml").read_text()) for run in shell.runs()]
    assert {choice["recipe"] for choice in chosen} == {*RECIPES} - {BACKWARD}
    table = next(shell.folder.glob("outputs/train/*/*/report.md")).read_text()
    assert all(f"| {choice['recipe']} " in table for choice in chosen), table


def test_a_recipe_takes_settings_like_a_method(shell):
    typed = [f"recipe={BACKWARD}", "loss.transition=symmetric", "loss.rate=0.4", "report=false"]
    status, said = shell("train", *typed, *TINY)
    assert status == 0, said

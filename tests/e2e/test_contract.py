"""``noisyml contract`` on classes of another package."""

import os
import sys

import pytest

MINE = '''
from noisyml.methods.base import Method
from noisyml.methods.classification.base import Classification


class Mine(Classification):
    """A classifier whose loss counts for more.

    Args:
        parts: what a method is made of.
        factor: of the loss.
        on_empty: a batch of which nothing is kept.
    """

    def __init__(self, parts, *, factor: float = 2.0, on_empty="skip"):
        super().__init__(parts, on_empty=on_empty)
        self.factor = factor

    def training_step(self, batch, batch_idx):
        output = super().training_step(batch, batch_idx)
        if output is not None:
            output["loss"] = self.factor * output["loss"]
        return output


class Mistaken(Mine):
    """A classifier whose step cannot run."""

    def __init__(self, parts, *, secret: int = 1, factor: float = 2.0, on_empty="skip"):
        super().__init__(parts, factor=factor, on_empty=on_empty)

    def training_step(self, batch, batch_idx):
        return super().training_step(batch)


class Needy(Mine):
    """A classifier that cannot do without a number."""

    def __init__(self, parts, *, number, **settings):
        super().__init__(parts, **settings)


class NoMethod:
    pass
'''


@pytest.fixture
def package(shell, monkeypatch):
    (shell.folder / "outsider").mkdir()
    (shell.folder / "outsider" / "__init__.py").write_text(MINE)
    # The command adds this folder to both.
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", os.environ["PYTHONPATH"])
    return "outsider"


def test_a_class_of_another_package_is_checked_promise_by_promise(shell, package):
    status, said = shell("contract", f"{package}.Mine", "--checks", "arguments,resumes,evaluates")
    assert status == 0, said
    lines = [line for line in said.splitlines() if "kept" in line]
    assert [line.split()[1] for line in lines] == ["arguments", "resumes", "evaluates"]


def test_a_broken_promise_is_told_and_shows_in_the_status(shell, package):
    status, said = shell("contract", f"{package}.Mistaken", "--checks", "arguments")
    assert status == 1, said
    assert "Traceback" not in said
    assert "broken: TypeError" in said
    assert "batch_idx" in said


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        (["outsider.Gone"], "outsider.Gone cannot be imported"),
        (["nowhere.Mine"], "nowhere.Mine cannot be imported: No module named 'nowhere'."),
        (["outsider.NoMethod"], "outsider.NoMethod is no method: derive it from"),
        (["outsider.Needy"], "outsider.Needy needs number: type method.number=... after it."),
        (["prisn"], "Did you mean 'prism'?"),
        (["prism", "--checks", "resume"], "There is no check 'resume'. Did you mean 'resumes'?"),
    ],
)
def test_a_class_that_cannot_be_checked_is_one_sentence(shell, package, typed, sentence):
    status, said = shell("contract", *typed)
    assert status == 2
    assert sentence in said
    assert len(said.strip().splitlines()) == 1

"""Commands on the pages of the documentation can be composed: every key in them exists."""

import re
import shlex

import pytest
from support import paths

PAGES = ("discovery.md", "image_text.md")


def commands(page):
    """Words of each ``noisyml train`` on a page; of a sweep the first value of each setting."""
    text = (paths.ROOT / "docs" / page).read_text().replace("\\\n", " ")
    for line in re.findall(r"^\s*(noisyml train .*)$", text, flags=re.MULTILINE):
        words = shlex.split(line, comments=True)[2:]
        sweep = "-m" in words
        words = [word for word in words if word != "-m"]
        if sweep:
            words = [re.sub(r"=([^,\[\]{}]*),.*", r"=\1", word) for word in words]
        yield words


CASES = [(page, words) for page in PAGES for words in commands(page)]


def test_there_are_many():
    assert len(CASES) > 12


@pytest.mark.parametrize(
    ("page", "words"), CASES, ids=[f"{page}-{number}" for number, (page, _) in enumerate(CASES)]
)
def test_commands_compose(shell, page, words):
    status, said = shell("train", *words, "--cfg", "job")
    assert status == 0, said

"""Pages made of the code, and the check of the built site."""

import pytest
from support import paths

from scripts.docs_site import __main__ as site
from scripts.docs_site import check, docstrings, methods, reference
from scripts.docs_site.links import linked
from scripts.docs_site.settings import choice, settings_of, table


def entries(nav):
    for entry in nav:
        target = entry if isinstance(entry, str) else next(iter(entry.values()))
        if isinstance(target, list):
            yield from entries(target)
        else:
            yield target


def test_every_page_is_in_the_navigation():
    found = list(entries(site.configuration()["nav"]))
    written = {file.name for file in (paths.ROOT / "docs").glob("*.md")}
    made = {f"methods/{name}.md" for name in methods.method_names()}
    made |= {f"reference/options/{group}.md" for group in reference.groups()}
    assert written | made <= set(found)
    assert len(found) == len(set(found))


def test_settings_are_those_of_the_file_with_their_comments():
    text = (
        "_target_: noisyml.noise.Symmetric\n"
        "rate: 0.4  # a share\n"
        "inner:\n"
        '  words: [a, "#b"]  # two | words\n'
        "  several:\n"
        "    - 1\n"
        "    - 2\n"
    )
    found = settings_of(text, "noise.")
    assert [(s.key, s.default, s.meaning) for s in found] == [
        ("noise.rate", "0.4", "a share"),
        ("noise.inner.words", '[a, "#b"]', "two | words"),
        ("noise.inner.several", "[1, 2]", ""),
    ]
    assert found[0].allowed == "a number from 0 to 1"
    assert "two \\| words" in table(found)


def test_an_option_has_the_settings_of_the_one_that_it_starts_from():
    found = choice("method", "bare")
    (setting,) = [s for s in found.settings if s.key == "method.on_empty"]
    assert setting.default == "keep_all"
    assert setting.allowed == "skip or keep_all"
    assert "selector=bare" in found.brings
    assert "loss=cross_entropy" in found.brings


@pytest.mark.parametrize("name", ["cbml", "bare"])
def test_the_page_of_a_method_has_all_that_belongs_to_it(name):
    page = methods.page(name)
    found = choice("method", name)
    parts = [choice(*word.split("=")) for word in found.brings if "loss=" in word]
    for setting in (*found.settings, *(s for part in parts for s in part.settings)):
        assert f"| `{setting.key}` | `{setting.default}` |" in page
    for heading in ("## What it is", "## Objective", "## Options", "## Measured", "## Published"):
        assert heading in page
    assert f"noisyml train method={name}" in page


def test_the_objective_is_that_of_the_docstring():
    page = methods.page("cbml")
    assert "log(1 + E+) + log(1 + E-)" in page
    assert "Args:" not in page


def test_docstrings_become_markdown():
    text = "One ``word``.\n\nA * b < c.\n\nArgs:\n    x: it."
    assert docstrings.prose(text) == "One `word`.\n\nA \\* b &lt; c."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[a](docs/clean.md#review)", "[a](clean.md#review)"),
        ("[docs/image_text.md](docs/image_text.md)", "[image text](image_text.md)"),
        ("![p](docs/images/x.png)", "![p](images/x.png)"),
        ("[c](CONTRIBUTING.md)", "[c](contributing.md)"),
        ("[f](noisyml/cli.py)", "f"),
        ("[w](https://arxiv.org/abs/1)", "[w](https://arxiv.org/abs/1)"),
        ("```bash\n[a](docs/clean.md)\n```", "```bash\n[a](docs/clean.md)\n```"),
    ],
)
def test_links_of_the_repository_become_links_of_the_site(text, expected):
    assert linked(text, "README.md") == expected


def test_the_check_names_broken_links_and_what_comes_from_elsewhere(tmp_path):
    (tmp_path / "a.html").write_text(
        '<h2 id="x"></h2><a href="b.html#here">b</a><a href="#x">x</a><a href="https://x.org">w</a>'
    )
    (tmp_path / "b.html").write_text('<h2 id="here"></h2><img src="a.png">')
    (tmp_path / "a.png").write_bytes(b"")
    assert check.mistakes(tmp_path) == []
    (tmp_path / "c.html").write_text(
        '<a href="d.html">d</a><a href="b.html#there">b</a>'
        '<script src="https://cdn.org/x.js"></script>'
    )
    assert [mistake.partition(" ")[2] for mistake in check.mistakes(tmp_path)] == [
        "loads https://cdn.org/x.js",
        "leads to d.html, which does not exist",
        "leads to b.html#there: there is no such place on that page",
    ]

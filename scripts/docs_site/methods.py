"""A page for every option of ``method``, made of its YAML file and of the docstrings behind it."""

from __future__ import annotations

import dataclasses
import functools
import re
import sys
from collections.abc import Sequence
from typing import Any

import yaml
from hydra.utils import get_object

from noisyml.conformance.recipes import PARTS, TINY
from noisyml.reports.formats import escape_markdown, markdown_row
from noisyml.reproduce.cells import Cell, cells
from noisyml.reproduce.claims import Claim, load_claims
from noisyml.reproduce.figures import PUBLISHED, Figure, PublishedTable, published_tables
from noisyml.reproduce.verdicts import explanations, short_markdown, stored_trials
from scripts.docs_site.docstrings import body, imported, prose, referred
from scripts.docs_site.settings import Choice, choice, files, table

#: Methods whose page of the family is not named after the folder of their module.
_ELSEWHERE = {"insclr": "retrieval", "self_training": "self_training"}
#: Groups whose option a method brings and a page explains.
_EXPLAINED = ("loss", "selector", "bank", "objective", "segmenter")
_ARXIV = re.compile(r"\b\d{4}\.\d{5}\b")


def method_names() -> list[str]:
    """All options of ``method``."""
    return [file.stem for file in files("method")]


def family(name: str) -> str:
    """The written page that a method belongs to, without its ending."""
    target = choice("method", name).target or ""
    return _ELSEWHERE.get(name, target.split(".")[2])


def title(name: str) -> str:
    """The name of a method as its papers write it."""
    return choice("method", name).description.partition(":")[0]


def command(name: str) -> str:
    """A run on embedded data."""
    recipe = TINY.get(name)
    parts = PARTS | dict(recipe.parts) if recipe else PARTS
    words = [f"method={name}", f"dataset={parts['dataset']}", f"backbone={parts['backbone']}"]
    if family(name) != "vectors":  # which asks no labels
        words.append(f"noise={parts['noise']}")
    if parts["dataset"] == "mosaic":
        words.append("backbone.image_size=[8,24]")
    if parts["dataset"] in ("glyphs", "glyphs_captions") and parts["backbone"] == "mlp":
        words.append("backbone.image_size=32")
    if parts["dataset"] == "glyphs":
        words.append("dataset.split=closed_set")
    if "stages" in parts:
        words.append(f"stages={parts['stages']}")
    if name == "self_training":
        words += ["stages=gist", "data.labelled_size=60"]
    return f"noisyml train {' '.join(words)}"


def page(name: str) -> str:
    """The page of a method, in Markdown."""
    found = choice("method", name)
    method = get_object(found.target)
    module = sys.modules[method.__module__]
    words = [word.partition("=") for word in found.brings]
    parts = [(group, choice(group, option)) for group, _, option in words if group in _EXPLAINED]
    targets = [get_object(part.target) for _, part in parts if part.target]
    modules = [module, *(sys.modules[target.__module__] for target in targets)]
    return "\n\n".join(
        filter(
            None,
            [
                f"# {title(name)}",
                f"{_capitalised(found.description.partition(': ')[2])}.",
                f"`method={name}` · [the family's page](../{family(name)}.md)",
                f"```bash\n{command(name)}\n```",
                "## What it is",
                body(module),
                prose(method),
                _objectives(module, targets),
                "## Options",
                table(found.settings),
                _brought(found),
                *(_part(group, part) for group, part in parts),
                _figures(_papers([found.description, *(m.__doc__ for m in modules)])),
            ],
        )
    )


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def _objectives(module: Any, targets: Sequence[Any]) -> str:
    """The losses and selectors of a method: of its options, and those that its module imports."""
    shown: dict[str, str] = {}
    for target in [*targets, *imported(module, "noisyml.losses")]:
        for one in (target, *referred(target)):
            if not dataclasses.is_dataclass(one):
                shown.setdefault(one.__name__, prose(one))
    pieces = [f"**`{name}`.** {text}" for name, text in shown.items() if text]
    return "\n\n".join(["## Objective", *pieces]) if pieces else ""


def _brought(found: Choice) -> str:
    if not found.brings:
        return ""
    words = ", ".join(f"`{word}`" for word in found.brings)
    return (
        f"It brings {words}; what is typed after `method=` takes their place. "
        "[All options](../reference/options.md)."
    )


def _part(group: str, part: Choice) -> str:
    rows = table(part.settings)
    if not rows:
        return ""
    return f"### {group}={part.name}\n\n{part.description}.\n\n{rows}"


# -- figures ------------------------------------------------------------------------------------


def _papers(texts: Sequence[str | None]) -> list[str]:
    """Identifiers of the papers that texts name by their numbers at arXiv."""
    named = set(_ARXIV.findall(" ".join(filter(None, texts))))
    return [paper for paper, numbers in _numbers().items() if named & numbers]


@functools.cache
def _numbers() -> dict[str, frozenset[str]]:
    """Numbers at arXiv of every paper that figures were published in."""
    found = {}
    for file in sorted(PUBLISHED.glob("*.yaml")):
        head = file.read_text(encoding="utf-8").partition("\ntables:")[0]
        found[yaml.safe_load(head)["paper"]["id"]] = frozenset(_ARXIV.findall(head))
    return found


def _figures(papers: Sequence[str]) -> str:
    """What was published, and what was measured."""
    tables = [one for one in published_tables().values() if one.paper in papers]
    claims = [claim for claim in load_claims() if claim.paper in papers]
    return "\n\n".join(filter(None, [_measured(claims), _published(tables)]))


def _measured(claims: Sequence[Claim]) -> str:
    trials = stored_trials(claims)
    if not trials:
        return ""
    return "\n\n".join(
        filter(
            None,
            [
                "## Measured",
                "Claims at desk scale, on embedded data: the first arm less the second, over pairs "
                f"of runs with the same seeds. `noisyml reproduce claims {trials[0].claim.paper}`, "
                "see [reproducing](../reproduce.md).",
                short_markdown(trials),
                explanations(trials),
            ],
        )
    )


def _published(tables: Sequence[PublishedTable]) -> str:
    if not tables:
        return ""
    parts = [
        "## Published",
        f"`noisyml reproduce {tables[0].name}` trains the runs of a table and writes its figures "
        "beside these.",
    ]
    for one in tables:
        found = cells(one)
        able = sum(bool(cell.words) for cell in found)
        secondary = " Not a source of the authors." if one.secondary else ""
        read_off = " Read off a picture." if one.approximate else ""
        text = (
            f"Source: {one.source}.{secondary}{read_off} {able} of {len(found)} rows have "
            f"settings to run.\n\n{_rows(found)}"
        )
        heading = f"{one.name}: {one.caption}".replace('"', "'")
        parts.append(f'??? note "{heading}"\n\n{_indented(text)}')
    return "\n\n".join(parts)


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" if line else "" for line in text.splitlines())


def _rows(found: Sequence[Cell]) -> str:
    """Published figures as a table, a row a setting."""
    keys = list(dict.fromkeys(key for cell in found for key in cell.figures[0].setting))
    metrics = list(dict.fromkeys(figure.metric for cell in found for figure in cell.figures))
    lines = [
        markdown_row([*keys, *metrics]),
        markdown_row(["---"] * len(keys) + ["---:"] * len(metrics)),
    ]
    for cell in found:
        setting = cell.figures[0].setting
        values = {figure.metric: _value(figure) for figure in cell.figures}
        row = [*(str(setting.get(key, "")) for key in keys), *(values.get(m, "") for m in metrics)]
        lines.append(markdown_row([escape_markdown(text) for text in row]))
    return "\n".join(lines)


def _value(figure: Figure) -> str:
    sign = {"percent": " %", "percentage_points": " points", "fraction": ""}
    std = "" if figure.std is None else f" ± {figure.std:g}"
    return f"{figure.value:g}{std}{sign.get(figure.unit, f' {figure.unit}')}"

"""Reference pages: the options of every group, the verbs."""

from __future__ import annotations

import importlib
import inspect

import yaml

from noisyml.cli import module_name, verbs
from noisyml.command.config import conf_dir, group_names
from scripts.docs_site.docstrings import as_markdown
from scripts.docs_site.settings import choice, files, settings_of, table

#: Groups of which there is nothing to choose, or that have pages of their own.
_LEFT_OUT = ("method", "paths", "callbacks", "hydra", "hydra/sweeper")


def groups() -> list[str]:
    """Config groups that have a page."""
    return sorted(set(group_names()) - set(_LEFT_OUT))


def options_page() -> str:
    """The page that leads to those of all groups."""
    rows = [f"| [`{group}=`](options/{group}.md) | {_names(group)} |" for group in groups()]
    return "\n".join(
        [
            "# Options",
            "",
            "Every part of a run is an option of a group, a YAML file in `conf/`. These pages are "
            "made of the files: defaults and meanings are theirs, and what is allowed is what the "
            "constructors check. `noisyml list` prints the first line of each; "
            "`noisyml train --cfg job` prints a whole configuration.",
            "",
            "| group | options |",
            "| --- | --- |",
            *rows,
            "",
            "Settings of a run as a whole: [`noisyml train`](verbs.md#train).",
            "",
        ]
    )


def _names(group: str) -> str:
    return ", ".join(f"`{file.stem}`" for file in files(group))


def group_page(group: str) -> str:
    """The page of a group: a section for each of its options."""
    parts = [f"# {group}="]
    for file in files(group):
        found = choice(group, file.stem)
        parts += [f"## {found.name}", f"{found.description}."]
        if found.target:
            parts.append(f"`{found.target}`")
        if found.brings:
            parts.append(f"Brings {', '.join(f'`{word}`' for word in found.brings)}.")
        if found.settings:
            parts.append(table(found.settings))
    return "\n\n".join(parts)


def verbs_page() -> str:
    """The page of all verbs: what each does, its usage, and the settings of its root file."""
    parts = ["# Verbs", "`noisyml VERB --help` prints what stands here."]
    for verb, line in verbs().items():
        module = importlib.import_module(module_name(verb))
        text = inspect.getdoc(module) or line
        parts += [f"## {verb}", as_markdown(text)]
        root = conf_dir() / f"{verb}.yaml"
        if root.is_file():
            content = root.read_text(encoding="utf-8")
            usage = yaml.safe_load(content)["hydra"]["help"]["template"].partition("== groups")[0]
            if usage.strip():
                parts.append(f"```text\n{usage.rstrip()}\n```")
            parts.append(table(settings_of(content)))
    return "\n\n".join(parts)

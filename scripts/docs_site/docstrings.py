"""Docstrings as Markdown."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from typing import Any

_SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises|Example|Examples):$")


def prose(thing: Any) -> str:
    """A docstring up to its sections (``Args:`` and the like), as Markdown.

    Args:
        thing: a module, class or function, or the text of a docstring.
    """
    text = thing if isinstance(thing, str) else thing.__doc__
    kept = []
    for line in inspect.cleandoc(text or "").splitlines():
        if _SECTION.match(line):
            break
        kept.append(line)
    return as_markdown("\n".join(kept).strip())


def as_markdown(text: str) -> str:
    """Text of a docstring as Markdown: single backticks, signs of arithmetic as they are."""
    pieces = re.split(r"(``.+?``|`[^`]+`)", text, flags=re.DOTALL)
    for place, piece in enumerate(pieces):
        if piece.startswith("`"):
            pieces[place] = f"`{' '.join(piece.strip('`').split())}`"
        else:
            pieces[place] = piece.replace("*", "\\*").replace("<", "&lt;")
    return "".join(pieces)


def body(thing: Any) -> str:
    """`prose` without the first paragraph."""
    return prose(thing).partition("\n\n")[2]


def arguments_of(target: Any) -> dict[str, str]:
    """What the docstring of a class, function or base of it says about each argument."""
    owners = inspect.getmro(target) if inspect.isclass(target) else (target,)
    found: dict[str, str] = {}
    for owner in owners:
        text = inspect.cleandoc(getattr(owner, "__doc__", None) or "")
        section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", text, flags=re.MULTILINE | re.DOTALL)
        entries = re.findall(
            r"^    (\w[\w, ]*):(.*?)(?=^    \w[\w, ]*:|\Z)",
            section.group(1) if section else "",
            flags=re.MULTILINE | re.DOTALL,
        )
        for heads, said in entries:
            for name in heads.split(","):
                found.setdefault(name.strip(), " ".join(said.split()))
    return found


def referred(thing: Any) -> list[Any]:
    """Functions of its own module that a class's or function's first paragraphs refer to."""
    module = sys.modules[thing.__module__]
    names = re.findall(r"`(\w+)`", prose(thing))
    found = [getattr(module, name, None) for name in names]
    return [one for one in found if inspect.isfunction(one) and one.__module__ == module.__name__]


def imported(module: Any, package: str) -> list[Any]:
    """Functions and classes that a module takes from a package, in the order of its imports."""
    tree = ast.parse(inspect.getsource(module))
    found = []
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(package):
            found += [getattr(module, alias.asname or alias.name) for alias in node.names]
    return [one for one in found if inspect.isfunction(one) or inspect.isclass(one)]

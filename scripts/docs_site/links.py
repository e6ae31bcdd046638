"""Links between files of the repository as links between pages of the site."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import PurePosixPath

#: Pages that are written outside ``docs``, and where they stand on the site.
MOVED = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
_FENCE = re.compile(r"(^ *```.*?^ *```$)", flags=re.MULTILINE | re.DOTALL)


def place(file: str) -> str | None:
    """Where a file of the repository stands on the site; None if it does not."""
    if file in MOVED:
        return MOVED[file]
    return file.removeprefix("docs/") if file.startswith("docs/") else None


def linked(text: str, file: str) -> str:
    """The text of a page with links as the site needs them; those to other files are plain text.

    Args:
        text: Markdown.
        file: its path in the repository.
    """
    here = PurePosixPath(place(file) or file).parent

    def replaced(match: re.Match[str]) -> str:
        picture, words, target = match.groups()
        path, hash_, anchor = target.partition("#")
        if not path or re.match(r"\w+:", target):
            return match.group(0)
        found = place(os.path.normpath(PurePosixPath(file).parent / path))
        if found is None:
            return words
        if words == path:  # what is good to read beside the files
            words = PurePosixPath(path).stem.replace("_", " ")
        return f"{picture}[{words}]({os.path.relpath(found, here)}{hash_}{anchor})"

    return _outside_fences(text, lambda piece: _LINK.sub(replaced, piece))


def _outside_fences(text: str, change: Callable[[str], str]) -> str:
    pieces = _FENCE.split(text)
    return "".join(piece if number % 2 else change(piece) for number, piece in enumerate(pieces))

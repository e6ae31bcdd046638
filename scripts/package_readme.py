"""The README as a package index shows it (a hatchling metadata hook).

On an index nothing lies beside the README, so links into the checkout lead nowhere. With the
address of the repository in ``project.urls`` (``Source``) they become absolute; without one, a
picture gives way to its description and a link to its text.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

try:
    from hatchling.metadata.plugin.interface import MetadataHookInterface
except ModuleNotFoundError:  # called by hand
    MetadataHookInterface = object

_LINK = re.compile(r"(?P<picture>!?)\[(?P<text>[^\[\]]*)\]\((?P<target>[^()\s]+)\)")
#: Targets that lead somewhere from anywhere.
_ABSOLUTE = re.compile(r"[a-z]+:", re.IGNORECASE)
_BLOCK = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def for_index(text: str, source: str | None) -> str:
    """A README in Markdown whose links do without the checkout.

    Args:
        text: of the README.
        source: address of the repository, as of a page of files; None where none is known.
    """

    def mended(match: re.Match[str]) -> str:
        picture, words, target = match["picture"], match["text"], match["target"]
        if _ABSOLUTE.match(target) or target.startswith("#"):
            return match[0]
        if source is not None:
            kind = "raw" if picture else "blob"
            return f"{picture}[{words}]({source.rstrip('/')}/{kind}/HEAD/{target})"
        return f"*{words}* (picture in the repository)" if picture else words

    parts = _BLOCK.split(text)
    return "".join(part if i % 2 else _LINK.sub(mended, part) for i, part in enumerate(parts))


class CustomMetadataHook(MetadataHookInterface):
    """Gives the package its long description."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Called with the table ``project``."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        source = metadata.get("urls", {}).get("Source")
        metadata["readme"] = {"content-type": "text/markdown", "text": for_index(text, source)}

"""Check a built site: ``python -m scripts.docs_site.check FOLDER``.

Every link between pages leads to a page, and every anchor to a place on it; a page loads nothing
from elsewhere, so that it can be read without a network.
"""

from __future__ import annotations

import argparse
import os
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

#: Attributes by which a page loads something, by element.
_LOADING = {"img": "src", "script": "src", "source": "src", "iframe": "src"}


class _Page(HTMLParser):
    """Identifiers, links and what is loaded."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.identifiers: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {key: value for key, value in attrs if value}
        self.identifiers |= {given[key] for key in ("id", "name") if key in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag == "link" and given.get("rel") in ("stylesheet", "icon", "preconnect", "preload"):
            self.loaded.append(given.get("href", ""))
        if tag in _LOADING and _LOADING[tag] in given:
            self.loaded.append(given[_LOADING[tag]])


def mistakes(folder: Path) -> list[str]:
    """Broken links and what is loaded from elsewhere, a line each.

    Args:
        folder: of the built site.
    """
    pages = {
        str(file.relative_to(folder)): _Page(file.read_text(encoding="utf-8"))
        for file in sorted(folder.rglob("*.html"))
        if file.name != "404.html"  # its links start at the root of a server
    }
    found = []
    for name, page in pages.items():
        found += [f"{name} loads {target}" for target in page.loaded if _is_elsewhere(target)]
        for link in [*page.links, *page.loaded]:
            if _is_elsewhere(link):
                continue
            path, _, anchor = unquote(link).partition("#")
            place = os.path.normpath(Path(name).parent / path) if path else name
            if not (folder / place).exists():
                found.append(f"{name} leads to {link}, which does not exist")
            elif anchor and place in pages and anchor not in pages[place].identifiers:
                found.append(f"{name} leads to {link}: there is no such place on that page")
    return found


def _is_elsewhere(target: str) -> bool:
    return target.startswith(("http:", "https:", "//", "mailto:", "data:"))


def main() -> int:
    """Print the mistakes; 1 if there are any."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    found = mistakes(parser.parse_args().folder)
    print("\n".join(found) or "every link leads somewhere, and nothing is loaded from elsewhere")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())

"""Write the pages and the configuration of the site: ``python -m scripts.docs_site FOLDER``.

The written pages come from ``docs/`` and from the files beside the README; those of methods,
options, verbs and notebooks are made of the code. ``make docs`` then turns the folder into HTML.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import yaml

from noisyml.storage.files import write_atomically
from scripts.docs_site import methods, notebooks, reference
from scripts.docs_site.links import MOVED, linked

ROOT = Path(__file__).resolve().parents[2]


def pages() -> dict[str, str]:
    """Every page of the site by its place, in Markdown."""
    found = {}
    for file in sorted((ROOT / "docs").glob("*.md")):
        found[file.name] = linked(file.read_text(encoding="utf-8"), f"docs/{file.name}")
    for name, place in MOVED.items():
        found[place] = linked((ROOT / name).read_text(encoding="utf-8"), name)
    for family, names in families().items():
        found[f"{family}.md"] += _list_of(names)
    for name in methods.method_names():
        found[f"methods/{name}.md"] = methods.page(name)
    found["reference/options.md"] = reference.options_page()
    for group in reference.groups():
        found[f"reference/options/{group}.md"] = reference.group_page(group)
    found["reference/verbs.md"] = reference.verbs_page()
    for file in notebooks.files():
        found[f"notebooks/{file.stem}.md"] = notebooks.page(file)
    return found


def families() -> dict[str, list[str]]:
    """The methods of each written page."""
    found: dict[str, list[str]] = {}
    for name in methods.method_names():
        found.setdefault(methods.family(name), []).append(name)
    return found


def _list_of(names: list[str]) -> str:
    lines = [f"- [{methods.title(name)}](methods/{name}.md): `method={name}`" for name in names]
    return "\n\n## Pages of the methods\n\n" + "\n".join(lines) + "\n"


def configuration() -> dict[str, Any]:
    """``mkdocs.yml`` with the pages that are made, each below the entry it belongs to."""
    content: dict[str, Any] = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    content["nav"] = [_with_made(entry) for entry in content["nav"]]
    return content


def _with_made(entry: Any) -> Any:
    """An entry of the navigation; that of a family followed by its methods."""
    if isinstance(entry, str):
        return entry
    ((words, target),) = entry.items()
    if isinstance(target, list):
        return {words: [_with_made(one) for one in target]}
    stem = target.removesuffix(".md")
    if stem in families():
        made = [{methods.title(name): f"methods/{name}.md"} for name in families()[stem]]
        return {words: [{"Overview": target}, *made]}
    if target == "reference/options.md":
        made = [{group: f"reference/options/{group}.md"} for group in reference.groups()]
        return {words: [{"All groups": target}, *made]}
    return entry


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="receives pages/ and mkdocs.yml")
    folder = parser.parse_args().folder
    shutil.rmtree(folder / "pages", ignore_errors=True)
    for place, text in pages().items():
        file = folder / "pages" / place
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, text)
    for name in ("images", "styles"):
        shutil.copytree(ROOT / "docs" / name, folder / "pages" / name)
    for table in sorted((ROOT / "docs").glob("*.csv")):
        shutil.copy(table, folder / "pages")
    notebooks.write_pictures(folder / "pages" / "notebooks")
    write_atomically(folder / "mkdocs.yml", yaml.safe_dump(configuration(), sort_keys=False))


if __name__ == "__main__":
    main()

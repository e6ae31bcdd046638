"""Published figures from a folder of YAML files, one a paper, to `noisyml/reproduce/published/`.

    python scripts/collect_published.py FOLDER

A file of the folder has ``paper`` (id, title, venue, arxiv) and ``tables``, each with ``id``,
``caption``, ``source`` and ``rows``. Every row becomes one figure: ``setting`` (all that tells it
from the other rows), ``metric``, ``value``, ``unit``, and ``std`` where one was published.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

PUBLISHED = Path(__file__).resolve().parents[1] / "noisyml" / "reproduce" / "published"
#: Keys of a row that are no part of its setting.
OF_THE_FIGURE = ("metric", "value", "unit", "std")


def figures(table: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The figures of a table; a row without ``metric`` has a column for each of several."""
    for row in table["rows"]:
        if "metric" in row:
            setting = {key: value for key, value in row.items() if key not in OF_THE_FIGURE}
            yield {"setting": setting, **{k: row[k] for k in OF_THE_FIGURE if k in row}}
            continue
        numbers = {k: v for k, v in row.items() if isinstance(v, int | float)}
        setting = {key: value for key, value in row.items() if key not in numbers}
        for name, value in numbers.items():
            yield {"setting": setting, "metric": name, "value": value, "unit": "count"}


def cited(text: object) -> str:
    """Words of a source in one line; discussions of a code host are called threads."""
    line = " ".join(str(text).split())
    line = re.sub(r"\bissue tracker\b", "threads", line)
    line = re.sub(r"\bissues (?=\d)", "threads ", line)
    return re.sub(r"\bissue (?=#?\d)", "thread ", line)


def collected(source: Mapping[str, Any]) -> dict[str, Any]:
    """One paper's file as the package has it."""
    paper = source["paper"]
    reliability = source.get("reliability") or {}
    tables = []
    for table in source.get("tables") or []:
        kind = str(table.get("reliability", ""))
        official = table.get("official", True)
        tables.append(
            {
                "id": re.sub("issue", "thread", table["id"]),
                "caption": cited(table["caption"]),
                "source": cited(table.get("source", "")),
                "secondary": kind.startswith("secondary") or official is False,
                "approximate": bool(table.get("approximate", False)),
                "note": cited(reliability.get(kind, "")),
                "figures": list(figures(table)),
            }
        )
    return {
        "paper": {key: paper[key] for key in ("id", "title", "venue", "arxiv") if key in paper},
        "tables": tables,
    }


def write(content: Mapping[str, Any], file: Path) -> None:
    """Write a paper's file, a figure a line."""
    lines = [yaml.safe_dump({"paper": content["paper"]}, sort_keys=False, width=100), "tables:"]
    for table in content["tables"]:
        head = {key: value for key, value in table.items() if key != "figures"}
        text = yaml.safe_dump([head], sort_keys=False, width=100, allow_unicode=True)
        lines.append("\n".join(f"  {line}" for line in text.splitlines()))
        lines.append("    figures:")
        for figure in table["figures"]:
            flow = yaml.safe_dump(
                figure, sort_keys=False, default_flow_style=True, width=10_000, allow_unicode=True
            )
            lines.append(f"    - {flow.strip()}")
    if not content["tables"]:
        lines[-1] = "tables: []"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Convert every file of the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    for file in sorted(parser.parse_args().folder.glob("*.yaml")):
        content = collected(yaml.safe_load(file.read_text(encoding="utf-8")))
        write(content, PUBLISHED / file.name)
        print(file.stem, {t["id"]: len(t["figures"]) for t in content["tables"]})


if __name__ == "__main__":
    main()

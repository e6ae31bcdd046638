"""Look at a data set: decode every image (check), or print and picture what it holds (show).

``noisyml data check dataset=csv dataset.path=labels.csv`` names undecodable images, duplicates
across splits, copies with different labels and classes with a single image; it exits with 1 if an
image is broken. Of vectors it names those that are not finite, without length or copies of others,
and counts columns that say nothing. ``noisyml data show dataset=glyphs`` prints the splits and
writes a contact sheet of each into the output folder.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from noisyml.apps._common.settings import DataSettings, read_settings
from noisyml.errors import UserError
from noisyml.storage.files import write_atomically

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from rich.console import Console

    from noisyml.data.base import DatasetSource, Split
    from noisyml.data.checks import Duplicate, SplitReport

ACTIONS = ("check", "show")
#: Broken images and duplicates named on the terminal; check.json has them all.
NAMED = 20


def main(arguments: list[str]) -> int:
    """Run ``noisyml data check|show [overrides]``; 1 if a check finds what cannot be used."""
    from noisyml.command.hydra import run_hydra
    from noisyml.errors import did_you_mean

    if not arguments or arguments[0] in {"-h", "--help"}:
        print(
            f"usage: noisyml data {'|'.join(ACTIONS)} [dataset=NAME] [key=value ...]\n\n{__doc__}"
        )
        return 0
    action, *rest = arguments
    if action not in ACTIONS:
        raise UserError(
            f"noisyml data has no action '{action}'.{did_you_mean(action, list(ACTIONS))} "
            f"Choose from: {', '.join(ACTIONS)}."
        )
    broken = []

    def job(config: DictConfig) -> None:
        read_settings(DataSettings, config)
        broken.append(check(config) if action == "check" else show(config))

    return run_hydra(job, "data", f"data {action}", rest) or int(any(broken))


def show(config: DictConfig) -> int:
    """Print the splits and write a contact sheet of each; returns 0."""
    import numpy as np
    from rich.console import Console
    from rich.table import Table

    from noisyml.data.checks import contact_sheet

    source, splits, output = _open(config)
    origin = source.split_origin
    facts = {name: split.target.facts(split.labels) for name, split in splits.items()}
    further = list(dict.fromkeys(heading for told in facts.values() for heading in told))
    spreads = ["images per class", *further]
    table = Table("split", "images", "classes", *spreads, "extras", "fingerprint")
    for name, split in splits.items():
        counts = split.class_counts
        counts = counts[counts > 0]
        spread = (
            f"{counts.min()} / {int(np.median(counts))} / {counts.max()}" if len(counts) else "-"
        )
        table.add_row(
            name,
            str(len(split)),
            str(len(counts)),
            spread,
            *(facts[name].get(heading, "") for heading in further),
            ", ".join(split.extras),
            split.fingerprint[:12],
        )
        sheet = output / f"{name}.png"
        contact_sheet(split, config.classes, config.instances, config.tile).save(sheet)
    console = Console()
    console.print(table)
    _say_origin(origin)
    console.print("images per class: least / median / greatest")
    for name in splits:
        print(f"contact sheet: {output / f'{name}.png'}")
    return 0


def check(config: DictConfig) -> int:
    """Decode every image, print what is wrong, write ``check.json``; returns the broken ones."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    from noisyml.data.checks import check_images, find_duplicates

    source, splits, output = _open(config)
    if next(iter(splits.values())).inputs.kind == "vectors":
        return check_vectors(source, splits, output)
    origin = source.split_origin
    console = Console()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    reports = {}
    with Progress(*columns, console=Console(stderr=True)) as progress:
        # One bar for all splits, so that the remaining time is that of the whole command.
        total = sum(map(len, splits.values()))
        task = progress.add_task("", total=total, rate="")
        start, finished = time.monotonic(), 0

        def advance(done: int) -> None:
            nonlocal finished
            finished += done
            rate = finished / max(time.monotonic() - start, 1e-6)
            progress.update(task, advance=done, rate=f"{rate:.0f} images/s")

        for name, split in splits.items():
            progress.update(task, description=f"decoding {name}")
            reports[name] = check_images(split, config.workers, advance)
    duplicates = find_duplicates(reports)
    _print_report(console, reports, duplicates)
    for kind, left_out in source.left_out.items():
        _name_some(f"left out: {len(left_out)} {kind}", list(left_out))
    _say_origin(origin)
    content = {
        "dataset": config.dataset._target_,
        "split_origin": origin,
        "left_out": {kind: list(paths) for kind, paths in source.left_out.items()},
        "splits": [report.to_dict() for report in reports.values()],
        "duplicates": [
            {
                "across_splits": group.across_splits,
                "labels_differ": group.labels_differ,
                "members": [
                    dict(zip(("split", "key", "label"), m, strict=True)) for m in group.members
                ],
            }
            for group in duplicates
        ],
    }
    path = output / "check.json"
    write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    print(f"all findings: {path}")
    return sum(len(report.broken) for report in reports.values())


def check_vectors(source: DatasetSource, splits: dict[str, Split], output: Path) -> int:
    """Read every vector, print what is wrong, write ``check.json``; returns those not finite."""
    from rich.console import Console
    from rich.table import Table

    from noisyml.data.vector_checks import check_vectors
    from noisyml.runs.progress import bar

    with bar("vectors") as shown:
        task = shown.add_task("reading", total=sum(map(len, splits.values())), note="")
        reports = check_vectors(splits, lambda done: shown.update(task, advance=done))
    table = Table("split", "vectors", "columns", "not finite", "zero", "length", "constant columns")
    for report in reports:
        table.add_row(
            report.split,
            str(report.vectors),
            str(report.columns),
            str(len(report.not_finite)),
            str(len(report.zero)),
            " / ".join(f"{length:.3g}" for length in report.lengths),
            str(len(report.constant_columns)),
        )
    Console().print(table)
    print("length: least / median / greatest")
    for report in reports:
        _name_some(f"vectors with entries that are no numbers in {report.split}", report.not_finite)
        _name_some(f"vectors without length in {report.split}", report.zero)
        equal = [" = ".join(group) for group in report.copies]
        _name_some(f"{len(equal)} vectors have copies in {report.split}", equal)
    _say_origin(source.split_origin)
    content = {
        "split_origin": source.split_origin,
        "splits": [report.to_dict() for report in reports],
    }
    path = output / "check.json"
    write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    print(f"all findings: {path}")
    return sum(len(report.not_finite) for report in reports)


def _print_report(
    console: Console, reports: dict[str, SplitReport], found: list[Duplicate]
) -> None:
    from rich.table import Table

    from noisyml.data.checks import sizes_differ

    table = Table("split", "images", "broken", "classes", "of one image", "width x height", "modes")
    for name, report in reports.items():
        sizes = report.sizes
        both = [f"{sizes[key][0]}x{sizes[key][1]}" for key in ("min", "median", "max") if sizes]
        table.add_row(
            name,
            str(len(report.keys)),
            str(len(report.broken)),
            str(int((report.class_counts > 0).sum())),
            str(len(report.lone_classes)),
            " / ".join(dict.fromkeys(both)),
            ", ".join(f"{mode} {count}" for mode, count in report.modes.items()),
        )
    console.print(table)
    for name, report in reports.items():
        _name_some(
            f"{len(report.broken)} broken images in {name}",
            [f"{key}: {reason}" for key, reason in report.broken],
        )
        if report.unlabelled:
            print(f"{report.unlabelled} images without any label in {name}")
        _name_some(f"classes with a single image in {name}", report.lone_classes)
        _name_some(f"classes without any image in {name}", report.empty_classes)
    if sizes_differ(reports.values()):
        print(
            "the images differ in size, but a batch wants one: train with transform=square "
            "transform.size=64 or transform=photo"
        )
    across = [group for group in found if group.across_splits]
    _name_some(f"{len(across)} images are in more than one split (same bytes)", _members(across))
    differ = [group for group in found if group.labels_differ]
    _name_some(
        f"{len(differ)} images have copies with another label (same bytes)", _members(differ)
    )


def _members(groups: list[Duplicate]) -> list[str]:
    return [
        " = ".join(f"{split}:{key} ({label})" for split, key, label in group.members)
        for group in groups
    ]


def _name_some(heading: str, lines: list[str]) -> None:
    if not lines:
        return
    print(f"{heading}:")
    for line in lines[:NAMED]:
        print(f"  {line}")
    if len(lines) > NAMED:
        print(f"  ... and {len(lines) - NAMED} more")


def _say_origin(origin: str) -> None:
    if origin:
        print(f"splits: {origin}")


def _open(config: DictConfig) -> tuple[DatasetSource, dict[str, Split], Path]:
    """The configured data set, its splits, and the output folder."""
    from hydra.core.hydra_config import HydraConfig

    from noisyml.assembly.nodes import build

    source = build(config.dataset)
    splits = source.splits()
    return source, splits, Path(HydraConfig.get().runtime.output_dir)

"""Say what there is: methods, datasets, noise, selectors, losses, backbones and more.

Reads the first comment of each YAML file; nothing is imported but, for data sets and published
tables, the small modules that know which files they need.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from noisyml.errors import UserError, did_you_mean

#: What may be listed: the word typed, and the config group behind it.
GROUPS = {
    "methods": "method",
    "datasets": "dataset",
    "noise": "noise",
    "selectors": "selector",
    "losses": "loss",
    "backbones": "backbone",
    "heads": "head",
    "text-encoders": "text_encoder",
    "segmenters": "segmenter",
    "distillations": "distillation",
    "evaluators": "evaluator",
    "pseudo-labels": "pseudo_labels",
    "stages": "stages",
    "samplers": "sampler",
    "transforms": "transform",
    "optimizers": "optimizer",
    "schedulers": "scheduler",
    "trainers": "trainer",
    "loggers": "logger",
    "experiments": "experiment",
}
#: What is listed only where it is asked for, and the verb that takes it.
ON_REQUEST = {"tables": "reproduce", "claims": "reproduce claims"}
KNOWN = (*GROUPS, *ON_REQUEST)


def main(arguments: list[str]) -> int:
    """Run ``noisyml list [GROUP ...] [--json]``."""
    parser = argparse.ArgumentParser(prog="noisyml list", description=__doc__)
    parser.add_argument("group", nargs="*", help=f"one of {', '.join(KNOWN)}; default: all groups")
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    typed = parser.parse_intermixed_args(arguments)
    for group in typed.group:
        if group not in KNOWN:
            raise UserError(
                f"Nothing is listed under '{group}'.{did_you_mean(group, list(KNOWN))} "
                f"Choose from: {', '.join(KNOWN)}."
            )
    found = {group: entries(group) for group in typed.group or GROUPS}
    if typed.json:
        print(json.dumps(found, indent=2))
        return 0
    for number, (group, rows) in enumerate(found.items()):
        if number:
            print()
        width = max((len(row["name"]) for row in rows), default=0)
        place = f"noisyml {ON_REQUEST[group]}" if group in ON_REQUEST else f"{GROUPS[group]}="
        print(f"{group} ({place}...)" if group in GROUPS else f"{group} ({place} ...)")
        for row in rows:
            state = f"  [{row['files']}]" if "files" in row else ""
            print(f"  {row['name']:<{width}}  {row['description']}{state}")
    return 0


def entries(group: str) -> list[dict[str, Any]]:
    """Name and description of each choice; for data sets also ``files``: present or missing."""
    if group in ON_REQUEST:
        from noisyml.apps._common import published

        return published.claims() if group == "claims" else published.tables()
    from noisyml.command.config import options

    rows: list[dict[str, Any]] = []
    for option in options(GROUPS[group]):
        row = {"name": option.name, "description": option.description}
        if group == "datasets":
            row["files"] = _presence(option.name)
        rows.append(row)
    return rows


def _presence(name: str) -> str:
    from omegaconf import OmegaConf

    from noisyml.assembly.nodes import build
    from noisyml.command.config import conf_dir

    folder = conf_dir()
    config = OmegaConf.create(
        {
            "paths": OmegaConf.load(folder / "paths" / "default.yaml"),
            "dataset": OmegaConf.load(folder / "dataset" / f"{name}.yaml"),
            "seed": 0,
        }
    )
    asked = sorted(str(key) for key in OmegaConf.missing_keys(config))
    if asked:
        return f"give {', '.join(asked)}"
    gone = build(config.dataset).missing()
    return "present" if gone is None else f"missing: {gone}"

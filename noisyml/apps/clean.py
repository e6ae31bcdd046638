"""Find wrong labels in your own data: a probability, a suggestion and reasons for every row.

``noisyml clean dataset=image_folder dataset.path=FOLDER`` judges every row of every split by the
features of a pretrained network, and writes what it found, the labels that follow, and a gallery to
review. ``noisyml clean apply decisions=FILE run=DIR`` makes the labels after a review. Killed at
any moment, ``noisyml clean resume=DIR`` goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisyml.apps._common.folder import refuse_foreign
from noisyml.apps._common.resumable import ResumableVerb
from noisyml.apps._common.settings import CleanSettings, read_settings
from noisyml.errors import UserError, did_you_mean
from noisyml.runs.folder import RunFolder

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from noisyml.audit.report import AuditSettings
    from noisyml.audit.rows import Rows
    from noisyml.data.base import Split

log = logging.getLogger(__name__)

#: Settings of the audit itself.
OWN = (
    *(
        "neighbours",
        "folds",
        "rounds",
        "search",
        "scores",
        "head_epochs",
        "rank_by",
        "planted_errors",
    ),
    *("relabel_above", "drop_above"),
    *("duplicates_above", "unlike_deviations", "look_at_images", "gallery_rows", "export", "seed"),
)
APPLYING = """usage: noisyml clean apply decisions=FILE [run=DIR] [out=FILE]

Make the labels that a review leaves. `decisions`: the file that the gallery saved, an export of
Label Studio (.json) or cleanlab's issues (.csv). `run`: folder of the audit; without it, that of
the decisions. `out`: the label file; without it, cleaned.csv in the folder of the audit."""
#: Settings that a folder may be gone on with otherwise.
FREE = ("name", "paths", "run_dir", "resume", "trainer", "data.num_workers")


def main(arguments: list[str]) -> int:
    """Run ``noisyml clean [overrides]`` or ``noisyml clean apply decisions=FILE run=DIR``."""
    if arguments[:1] == ["apply"]:
        return apply(arguments[1:])
    return Cleaning().main(arguments)


def apply(arguments: list[str]) -> int:
    """Write the labels that a review leaves.

    Raises:
        UserError: words that are not understood, or files that do not fit.
    """
    from noisyml.audit.report import apply_reviews
    from noisyml.command.words import Word

    if {"--help", "-h"} & set(arguments):
        print(APPLYING)
        return 0
    known = ("decisions", "run", "out")
    given: dict[str, str] = {}
    for word in map(Word.parse, arguments):
        if word.value is None or word.target not in known:
            raise UserError(
                f"noisyml clean apply does not know '{word.text}'.{did_you_mean(word.key, known)} "
                f"Write noisyml clean apply decisions=FILE run=DIR [out=FILE]."
            )
        given[word.key] = word.value
    if "decisions" not in given:
        raise UserError("noisyml clean apply needs decisions=FILE, which the gallery saved.")
    decisions = Path(given["decisions"])
    folder = Path(given.get("run", str(decisions.parent)))
    out = Path(given["out"]) if "out" in given else None
    file, relabelled, dropped = apply_reviews(folder, decisions, out)
    print(f"{relabelled:,} rows relabelled, {dropped:,} dropped: {file}")
    print(f"train on it: noisyml train dataset=csv dataset.path={file}")
    return 0


class Cleaning(ResumableVerb):
    """``noisyml clean``: goes on with the first step that is missing."""

    verb = "clean"
    holds = "an audit"
    free = FREE
    keeps_the_rest = True

    def configure(
        self,
        config: DictConfig,
        folder: RunFolder,
        settings: Sequence[str],
        choices: dict[str, str],
    ) -> tuple[DictConfig, dict[str, str]]:
        """The resolved configuration."""
        from omegaconf import OmegaConf, open_dict

        from noisyml.command.secrets import resolved

        with open_dict(config):
            config.run_dir = str(folder.path)
        return OmegaConf.create(resolved(config)), choices

    def check(self, config: DictConfig) -> None:
        """Refuse values that no audit can have."""
        read_settings(CleanSettings, config)
        own_settings(config)
        for key in ("decisions", "against", "probabilities"):
            if config[key] is not None and not Path(config[key]).is_file():
                raise UserError(f"There is no {config[key]}: {key}= is a file.")

    def begin(
        self, config: DictConfig, folder: RunFolder, typed: list[str], choices: dict[str, str]
    ) -> None:
        """Write what the audit is made from."""
        if not folder.is_run():
            refuse_foreign(folder)
        super().begin(config, folder, typed, choices)

    def recipe(self, config: DictConfig, folder: RunFolder, title: str) -> dict[str, float]:
        """Judge all rows and write the files."""
        return clean(config, folder)

    def conclude(self, home: Path, folders: Sequence[Path]) -> None:
        """Print what was found."""
        import json

        for folder in folders:
            for line in told(json.loads((folder / "summary.json").read_text(encoding="utf-8"))):
                print(line)
            for name in ("issues.csv", "cleaned.csv", "gallery.html"):
                if (folder / name).is_file():
                    print(folder / name)


def told(summary: dict[str, Any]) -> list[str]:
    """The summary of an audit in sentences."""
    low, high = summary["noise_rate_interval"]
    what = f"of {summary['classes']} classes" if summary["classes"] else "with captions"
    lines = [
        f"{summary['rows']:,} rows {what} judged; {summary['noise_rate']:.1%} of the labels are "
        f"wrong by estimate ({low:.1%} to {high:.1%}). {summary['told']}".rstrip(),
        f"cleaned.csv: {summary['decisions']['relabel']:,} relabelled, "
        f"{summary['decisions']['drop']:,} dropped, {summary['decisions']['keep']:,} kept.",
    ]
    if summary["planted_check"] is not None:
        lines.append(summary["planted_check"])
    if summary["near_duplicates"]:
        lines.append(
            f"{summary['near_duplicates']:,} pairs of near-duplicates, "
            f"{summary['near_duplicates_across_labels']:,} with different labels, "
            f"{summary['near_duplicates_across_splits']:,} across splits."
        )
    for count, text in (
        (summary["unlike_any_class"], "rows unlike all others"),
        (summary["odd_images"], "remarks on odd images"),
        (len(summary["broken_images"]), "images that cannot be decoded"),
    ):
        if count:
            lines.append(f"{count:,} {text}.")
    lines += [
        f"{pair['share']:.0%} of {pair['true']} are labelled {pair['label']}."
        for pair in summary["mixed_classes"][:5]
    ]
    return lines


def own_settings(config: DictConfig) -> AuditSettings:
    """The settings of the audit.

    Raises:
        UserError: a value that there cannot be.
    """
    from omegaconf import OmegaConf

    from noisyml.audit.report import AuditSettings

    given: Any = OmegaConf.to_container(config)
    return AuditSettings(**{key: given[key] for key in OWN})


def clean(config: DictConfig, folder: RunFolder) -> dict[str, float]:
    """Judge all rows of the configured data and write the files of the audit; its metrics."""
    from noisyml.apps._common.quiet import quiet
    from noisyml.audit.gallery import write_gallery
    from noisyml.audit.outside import read_probabilities, read_trained
    from noisyml.audit.report import audit, read_reviews, write_audit
    from noisyml.runs.processes import is_main_process
    from noisyml.runs.progress import step_bars

    quiet()
    if not is_main_process():
        return {}
    settings = own_settings(config)
    reviews = None if config.decisions is None else read_reviews(Path(config.decisions))
    rows = read_rows(config)
    probabilities = trained = None
    if config.probabilities is not None:
        probabilities = read_probabilities(Path(config.probabilities), rows)
    if config.trained is not None:
        trained = read_trained(Path(config.trained), rows)
    with step_bars(len(rows), "rows") as progress:
        found = audit(rows, settings, folder.path, reviews, progress, probabilities, trained)
    against = None if config.against is None else Path(config.against)
    write_audit(found, folder.path, settings, reviews, against)
    if settings.gallery_rows and rows.kind == "images":
        write_gallery(found, folder.path / "gallery.html", settings.gallery_rows)
    metrics = {
        "clean/noise_rate": found.judged.noise_rate.value,
        "clean/rows": float(len(rows)),
        **({} if found.check is None else found.check.metrics),
    }
    folder.write_metrics(metrics)
    return metrics


def read_rows(config: DictConfig) -> Rows:
    """All rows of the configured data set with their features, from the cache where they are there.

    Raises:
        UserError: data or weights missing, or labels that cannot be judged.
    """
    import numpy as np
    import torch

    from noisyml.assembly.nodes import build
    from noisyml.audit.rows import collect_rows
    from noisyml.data.features import cached_features
    from noisyml.data.vectors import vector_rows
    from noisyml.runs.progress import announce

    source = build(config.dataset)
    splits = dict(source.splits())
    if not source.has_labels:
        raise UserError("The data have no labels to judge.")
    wanted = [config.splits] if isinstance(config.splits, str) else config.splits
    for name in wanted or ():
        if name not in splits:
            raise UserError(
                f"The data set has no split '{name}'.{did_you_mean(name, splits)} It has: "
                f"{', '.join(splits)}."
            )
    splits = {name: split for name, split in splits.items() if not wanted or name in wanted}
    transform = build(config.transform)
    device = torch.device("cuda" if config.trainer.accelerator == "gpu" else "cpu")
    network: list[Any] = []

    def encode(images: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            found: torch.Tensor = network[0].raw_features(images.to(device)).cpu()
        return found

    def features_of(split: Split) -> tuple[Any, Any]:
        if split.inputs.kind == "vectors":
            return vector_rows(split.inputs), np.empty(0, dtype=np.int64)
        if not network:
            torch.manual_seed(config.seed)  # random weights, where the backbone has no others
            network.append(build(config.backbone).eval().to(device))
        cached = cached_features(
            split,
            transform,
            encode,
            network[0].fingerprint(),
            Path(config.paths.cache).expanduser(),
            batch_size=config.data.eval_batch_size,
            num_workers=config.data.num_workers,
            on_broken="skip",
            progress=announce(f"features of {split.name}"),
        )
        return cached.features, cached.broken

    return collect_rows(splits, features_of)

"""Repeat a published table, or put the papers' claims on trial.

``noisyml reproduce TABLE`` trains what the table's cells ask for, skips what is finished, goes on
with what is not, and writes published figures beside measured ones. ``noisyml reproduce claims``
does so with claims: two arms each, paired over seeds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from noisyml.errors import UserError

if TYPE_CHECKING:
    from noisyml.reproduce.cells import Cell, Scale
    from noisyml.reproduce.figures import PublishedTable
    from noisyml.reproduce.jobs import Job

#: Words of this verb's own, with their defaults; all others are settings of every run.
OWN = {"rows": "", "seeds": "", "noise_seeds": "", "scale": "paper", "out": "outputs/reproduce"}
CLAIMS = "claims"
#: Seeds of each kind unless told otherwise.
SEEDS = 3


@dataclass(frozen=True)
class Typed:
    """A command line taken apart.

    Attributes:
        names: tables, or ``claims`` and perhaps some of them.
        rows: of a table, empty for all.
        seeds: of training; 0 where not typed.
        noise_seeds: of the noise; 0 where not typed.
        scale: ``paper`` or ``desk``.
        out: folder of results, with the runs below it.
        dry: only say what would be run.
        hydra: words about launchers.
        extra: settings of every run.
    """

    names: tuple[str, ...]
    rows: str
    seeds: int
    noise_seeds: int
    scale: Scale
    out: Path
    dry: bool
    hydra: tuple[str, ...]
    extra: tuple[str, ...]

    @property
    def runs(self) -> Path:
        """Folder of all runs, shared by tables and claims."""
        return self.out / "runs"


def main(arguments: list[str]) -> int:
    """Run ``noisyml reproduce TABLE ... [rows=...] [seeds=N] [noise_seeds=N] [scale=desk]``.

    Raises:
        UserError: a table, row or word that is none.
    """
    typed = _typed(arguments)
    if typed.names[0] == CLAIMS:
        from noisyml.apps._common.claims import reproduce_claims

        return reproduce_claims(typed)
    from noisyml.reproduce.figures import find_table

    statuses = [reproduce_table(find_table(name), typed) for name in typed.names]
    return max(statuses)


def reproduce_table(table: PublishedTable, typed: Typed) -> int:
    """Run what a table's cells ask for and write both kinds of figures; the exit status."""
    from noisyml.reproduce.cells import cells, choose_rows
    from noisyml.reproduce.jobs import distinct

    found = choose_rows(cells(table, typed.scale), typed.rows)
    jobs, lacking, costs = planned(found, typed)
    todo = distinct([j for own in jobs.values() for j in own if not j.is_finished(typed.runs)])
    _announce(table, found, jobs, lacking, todo)
    if typed.dry:
        for job in todo:
            print(job.command(typed.runs))
        print(_estimate(found, jobs, costs, typed))
        return 0
    from noisyml.reproduce import writing
    from noisyml.reproduce.measured import measure

    status = run_jobs(todo, typed) if todo else 0
    written = writing.write(
        measure(table, typed.scale, found, jobs, typed.runs, lacking), typed.out / table.name
    )
    print(f"table  {written.markdown} (also .tex, .csv)\npage   {written.html}")
    return status


def planned(
    found: Sequence[Cell], typed: Typed
) -> tuple[dict[int, list[Job]], dict[int, str], dict[int, float]]:
    """The jobs of each cell by its number, why others have none here, and the images of each."""
    from noisyml.apps._common.presence import missing
    from noisyml.command.words import Word, words_in
    from noisyml.reproduce.cells import asked_of_the_user
    from noisyml.reproduce.jobs import composing, repeated

    jobs: dict[int, list[Job]] = {}
    lacking: dict[int, str] = {}
    samples: dict[int, float] = {}
    seeds = [
        {"seed": seed, "noise.seed": noise}
        for noise in range(typed.noise_seeds or SEEDS)
        for seed in range(typed.seeds or SEEDS)
    ]
    given = {word.key for word in words_in(typed.extra)}
    with composing() as composed:
        for cell in found:
            if cell.lacking:
                continue
            words = [word.text for word in map(Word.parse, cell.words) if word.key not in given]
            if asked := asked_of_the_user(words):
                lacking[cell.number] = f"give {asked[0]}=..."
                words = [w for w in words if not w.endswith("=???")] + [f"{asked[0]}=null"]
            words = [*words, *typed.extra]
            config = composed(words)
            samples[cell.number] = _samples(config, cell.images)
            if not asked and (gone := missing(config)):
                lacking[cell.number] = f"missing: {gone}"
            jobs[cell.number] = repeated(config, words, seeds)
    if not typed.dry:
        jobs = {number: own for number, own in jobs.items() if number not in lacking}
    return jobs, lacking, samples


def run_jobs(jobs: Sequence[Job], typed: Typed) -> int:
    """Train jobs through Hydra's launcher, each in its own folder; the exit status."""
    from noisyml.apps.train import Training
    from noisyml.command.words import quoted
    from noisyml.reproduce.jobs import write_list

    typed.runs.mkdir(parents=True, exist_ok=True)
    listed = typed.runs / "jobs.json"
    write_list(jobs, listed)
    return Training().main(
        [
            "-m",
            *typed.hydra,
            "hydra/sweeper=listed",
            f"hydra.sweeper.file={quoted(str(listed.absolute()))}",
            f"hydra.sweep.dir={quoted(str(typed.runs))}",
            "report=false",
        ]
    )


def _typed(arguments: Sequence[str]) -> Typed:
    from noisyml.command.words import Word
    from noisyml.reproduce.cells import Scale

    parser = argparse.ArgumentParser(
        prog="noisyml reproduce",
        usage="noisyml reproduce TABLE ... [rows=...] [seeds=3] [noise_seeds=3] "
        "[scale=paper|desk] [out=DIR] [--dry-run] [setting=value ...]\n"
        "       noisyml reproduce claims [NAME ...] [--dry-run]",
        description="Repeat published tables (`noisyml list tables`), or put claims on trial. "
        "Settings hold for every run: trainer=gpu. hydra/launcher=joblib runs several at once.",
    )
    parser.add_argument("words", nargs="*")
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be run, and how long"
    )
    options = parser.parse_intermixed_args(list(arguments))
    names = [word for word in options.words if "=" not in word]
    settings = [word for word in options.words if "=" in word]
    own = dict(OWN)
    for word in map(Word.parse, list(settings)):
        if word.target in own:
            own[word.key] = word.value or ""
            settings.remove(word.text)
    if not names:
        raise UserError("Name a table (`noisyml list tables`), or type: noisyml reproduce claims.")
    if own["scale"] not in get_args(Scale):
        raise UserError(f"scale={own['scale']} is neither paper nor desk.")
    hydra = tuple(word for word in settings if word.startswith(("hydra/", "hydra.")))
    return Typed(
        names=tuple(names),
        rows=own["rows"],
        seeds=_count("seeds", own["seeds"]),
        noise_seeds=_count("noise_seeds", own["noise_seeds"]),
        scale="desk" if own["scale"] == "desk" else "paper",
        out=Path(own["out"]),
        dry=options.dry_run,
        hydra=hydra,
        extra=tuple(word for word in settings if word not in hydra),
    )


def _count(key: str, text: str) -> int:
    if text and not (text.isdigit() and int(text) > 0):
        raise UserError(f"{key}={text} is not a number of at least 1.")
    return int(text or 0)


def _announce(
    table: PublishedTable,
    found: Sequence[Cell],
    jobs: Mapping[int, Sequence[Job]],
    lacking: Mapping[int, str],
    todo: Sequence[Job],
) -> None:
    """Say what is run and what is not."""
    print(f"{table.name}: {table.caption}")
    reasons: dict[str, list[int]] = {}
    for cell in found:
        if why := cell.lacking or lacking.get(cell.number):
            reasons.setdefault(why, []).append(cell.number)
    for why, numbers in reasons.items():
        print(f"  rows {_listed(numbers)}: {why}", file=sys.stderr)
    total = len({job.key for own in jobs.values() for job in own})
    print(f"{total} runs, {total - len(todo)} of them finished, {len(todo)} to do.")


def _listed(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:8]))
    return f"{shown} and {len(numbers) - 8} more" if len(numbers) > 8 else shown


def _samples(config: Any, images: int) -> float:
    """Images that a run trains on, counted as often as they are seen; 0 where that is not known."""
    trainer, sampler = config.trainer, config.get("sampler") or {}
    batch = float(sampler.get("batch_size") or 0)
    steps = int(trainer.max_steps)
    if steps > 0:
        return steps * batch
    epochs = max(int(trainer.max_epochs or 0), 0)
    per_epoch = sampler.get("batches_per_epoch")
    limit = trainer.limit_train_batches
    batches = per_epoch or (images / batch if batch else 0)
    if isinstance(limit, int):
        batches = min(batches, limit) if batches else limit
    return float(epochs * batches * batch)


def _estimate(
    found: Sequence[Cell],
    jobs: Mapping[int, Sequence[Job]],
    samples: Mapping[int, float],
    typed: Typed,
) -> str:
    """The time that runs would take, in a sentence: from finished runs, else from their images."""
    from noisyml.reproduce.times import estimate

    return estimate(
        [(jobs[c.number], samples[c.number]) for c in found if c.number in jobs],
        typed.runs,
        typed.scale,
    )

"""Bars for work that takes a while: how far it is, how fast, and how long it will take."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

#: Seconds between two lines about a step where no bar can be drawn.
LINE_EVERY = 30.0


class RateColumn(ProgressColumn):
    """Units per second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        """The rate of `task`."""
        return Text(f"{task.speed:,.0f} {self.unit}/s" if task.speed else f"- {self.unit}/s")


def bar(unit: str, console: Console | None = None, transient: bool = True) -> Progress:
    """A progress bar with count, rate and remaining time.

    Args:
        unit: what is counted, in the plural.
        console: where it is drawn; standard error by default.
        transient: remove it when it is done.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        RateColumn(unit),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}"),
        console=console or Console(stderr=True),
        transient=transient,
    )


def announce(title: str) -> Any:
    """A progress function ``(done, total)`` that shows a bar from its first call to completion."""
    console = Console(stderr=True)
    shown = bar("images", console)
    task = shown.add_task(title, total=None, note="")
    began = time.monotonic()

    def update(done: int, total: int) -> None:
        if console.is_terminal:
            shown.start()
            shown.update(task, completed=done, total=total)
        if done >= total:
            if console.is_terminal:
                shown.stop()
            seconds = time.monotonic() - began
            console.print(f"{title}: {total:,} images in {seconds:.1f} s", highlight=False)

    return update


@contextlib.contextmanager
def step_bars(
    count: int, unit: str, console: Console | None = None
) -> Iterator[Callable[[str, float], None]]:
    """A progress function ``(step, share)`` that shows a bar for each step.

    Where there is no terminal it writes a line when a step begins, and further ones every
    `LINE_EVERY` seconds at most, with the share, the rate and the time left.

    Args:
        count: units that each step works through, `share` of which are done.
        unit: what is counted, in the plural.
        console: where it is shown; standard error by default.

    Example:
        >>> with step_bars(1000, "rows", Console()) as progress:
        ...     progress("neighbours", 0.0)
        neighbours (0 s)
    """
    where = console or Console(stderr=True)
    began = time.monotonic()
    tasks: dict[str, Any] = {}
    since: dict[str, tuple[float, float]] = {}
    told: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        bars = bar(unit, where)
        if where.is_terminal:
            stack.enter_context(bars)

        def update(step: str, share: float) -> None:
            now = time.monotonic()
            if step not in tasks:
                tasks[step] = bars.add_task(step, total=count, note="")
                since[step], told[step] = (now, share), now
                if not where.is_terminal:
                    where.print(f"{step} ({now - began:.0f} s)", highlight=False)
            bars.update(tasks[step], completed=round(share * count))
            start, done = since[step]
            if where.is_terminal or now - told[step] < LINE_EVERY or share <= done:
                return
            told[step] = now
            speed = (share - done) / (now - start)
            where.print(
                f"{step}: {share:.0%}, {speed * count:,.0f} {unit}/s, "
                f"{(1 - share) / speed:.0f} s left ({now - began:.0f} s)",
                highlight=False,
            )

        yield update

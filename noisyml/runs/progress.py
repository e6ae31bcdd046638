"""Bars for work that takes a while: how far it is, how fast, and how long it will take."""

from __future__ import annotations

import time
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

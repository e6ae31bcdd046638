"""What is shown of work that takes a while."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from noisyml.runs import progress


def test_lines_tell_share_rate_and_time_left_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter([0.0, 2.0, 10.0, 42.0, 50.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    text = io.StringIO()
    with progress.step_bars(1000, "rows", Console(file=text, width=100)) as update:
        # An earlier attempt did a fifth, which is not counted as the speed of this one.
        for share in (0.2, 0.4, 0.6, 0.7):
            update("neighbours", share)
    assert text.getvalue().splitlines() == [
        "neighbours (2 s)",
        "neighbours: 60%, 10 rows/s, 40 s left (42 s)",
    ]


def test_a_terminal_shows_a_bar_of_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=100)
    with progress.step_bars(1000, "rows", console) as update:
        update("neighbours", 0.5)
        update("round 1", 1.0)
    shown = text.getvalue()
    for text_of_a_bar in ("500/1000", "1000/1000", "rows/s"):
        assert text_of_a_bar in shown

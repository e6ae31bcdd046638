"""The script of the page: order and filters by themselves, the rest in a browser."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.browser import PROGRAM, Browser
from support.synthetic_runs import RunMaker

import noisyml.reports
from noisyml.reports import write_report

SCRIPT = Path(noisyml.reports.__file__).parent / "templates" / "page.js"


def evaluated(expression: str) -> object:
    """Value of an expression that may use the functions of the script."""
    program = f"{SCRIPT.read_text()}\nconsole.log(JSON.stringify({expression}))"
    ended = subprocess.run(["node", "-e", program], capture_output=True, text=True, check=True)
    return json.loads(ended.stdout)


def test_the_script_is_short_and_asks_nothing_of_anyone() -> None:
    text = SCRIPT.read_text()
    assert len(text.splitlines()) <= 200
    for word in ("fetch(", "XMLHttpRequest", "import ", "http", "innerHTML", "eval(", "</"):
        assert word not in text, word


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no node")
def test_cells_are_ordered_as_numbers_where_they_are_some() -> None:
    cells = {
        "0.8466± 0.0027": 0.8466,
        "-0.1583 to -0.0697": -0.1583,
        "−3": -3,
        "1,024": 1024,
        "1.5e-3": 0.0015,
        "3 of 4": 3,
        "12 %": 12,
        "< 0.0001": 0.0001,
        ".5": 0.5,
        "–": None,
        "": None,
        "Prism_VMF": "prism_vmf",
        "2026-11-29": "2026-11-29",
        "2 layers": "2 layers",
    }
    assert evaluated(f"{json.dumps(list(cells))}.map((t) => valueOf(t))") == list(cells.values())
    assert evaluated('[valueOf("0.85", "0.8466"), valueOf("1.00 a", "")]') == [0.8466, None]
    mixed = '["b10", 2, null, "b9", 10, -1, null]'
    up = f"{mixed}.sort((a, b) => order(a, b))"
    assert evaluated(up) == [-1, 2, 10, "b9", "b10", None, None]
    down = f"{mixed}.sort((a, b) => order(a, b, true))"
    assert evaluated(down) == ["b10", "b9", 10, 2, -1, None, None]
    words = '["", "prism 0.3", "0.3 PRISM", "prism 0.5", "0.52"]'
    found = f'{words}.map((f) => matches("0.3 prism_vmf\\n0.52± 0.1", f))'
    assert evaluated(found) == [True, True, True, False, True]
    lines = '[{label: "a", colour: "c", points: [[0, 1, null], [10, 2, 0.5], [20, null, null]]}]'
    near = {"label": "a", "colour": "c", "x": 10, "mean": 2, "deviation": 0.5}
    assert evaluated(f"[nearest({lines}, 13), nearest({lines}, 19)]") == [[near], []]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on nine runs with pictures."""
    maker = RunMaker(tmp_path_factory.mktemp("runs"))
    settings = [(s, r) for r in (0.1, 0.3, 0.5) for s in ("keep_all", "prism_avg", "prism_vmf")]
    for number, (selector, rate) in enumerate(settings):
        for seed in range(2):
            files = seed == 0 or ("history",)
            maker.run(f"demo/{2 * number + seed}", selector, rate, seed, files=files)
    return write_report([maker.root / "demo"]).html


@pytest.fixture
def desk(page: Path) -> Iterator[Browser]:
    browser = Browser(page, 1280, 900)
    yield browser
    assert not browser.errors
    browser.close()


@pytest.fixture
def telephone(page: Path) -> Iterator[Browser]:
    browser = Browser(page, 390, 844, touch=True)
    yield browser
    assert not browser.errors
    browser.close()


in_a_browser = pytest.mark.skipif(PROGRAM is None, reason="there is no chromium")

TABLE = "document.querySelector('table.results')"
HEAD = f"[...{TABLE}.querySelectorAll('th .sort')].find((b) => b.textContent === 'P@1')"
SHOWN = (
    f"[...{TABLE}.tBodies[0].rows].filter((r) => !r.hidden)"
    ".map((r) => Number(r.querySelectorAll('[data-exact]')[1].dataset.exact))"
)
TIP = "document.querySelector('.tip')"
DIALOG = "document.querySelector('dialog')"
DRAWN = "[...document.querySelectorAll('figure[data-curves] svg')]"
SVG = f"{DRAWN}.find((s) => s.getClientRects().length)"


@pytest.mark.slow
@in_a_browser
def test_rows_are_sorted_and_filtered(desk: Browser) -> None:
    before = desk.ask(SHOWN)
    assert len(before) == 9
    state = f"{HEAD}.closest('th').ariaSort"
    assert desk.ask(state) == "none"
    desk.click(HEAD)
    assert desk.ask(SHOWN) == sorted(before) != before
    assert desk.ask(state) == "ascending"
    desk.click(HEAD)
    assert desk.ask(SHOWN) == sorted(before, reverse=True)
    # The key that reaches a button presses it, as on any button.
    desk.ask(f"{HEAD}.focus()")
    desk.key("Enter", 13)
    desk.call("Input.dispatchKeyEvent", type="char", text="\r")
    assert desk.ask(state) in ("none", "ascending")
    while desk.ask(state) != "none":
        desk.click(HEAD)
    assert desk.ask(SHOWN) == before

    desk.click("document.querySelector('.filter input')")
    desk.write("prism_vmf 0.5")
    assert len(desk.ask(SHOWN)) == 1
    assert desk.ask("document.querySelector('.filter [role=status]').textContent") == "1 of 9 rows"
    # The rate of the row stands in a cell that is blank among others of the same rate.
    row = f"[...{TABLE}.tBodies[0].rows].find((r) => !r.hidden).cells[0]"
    assert desk.ask(f"getComputedStyle({row}.firstElementChild ?? {row}).visibility") == "visible"


@pytest.mark.slow
@in_a_browser
def test_figures_and_curves_tell_more_under_the_pointer(desk: Browser) -> None:
    assert desk.ask(f"{TIP}.hidden")
    desk.hover(f"{TABLE}.querySelectorAll('[data-exact]')[1]")
    told = desk.ask(f"{TIP}.textContent").splitlines()
    assert told[0] == "P@1 (last) (test/precision_at_1)"
    assert told[1].startswith("mean 0.")
    assert "95% interval" in told[2]
    assert [line[:7] for line in told[3:]] == ["seed 0:", "seed 1:"]
    desk.hover(SVG)
    lines = desk.ask(f"[...{TIP}.children].map((line) => line.textContent)")
    assert "nominal noise rate 0.3" in lines[0]
    assert [line.partition(":")[0] for line in lines[1:]] == ["keep_all", "prism_avg", "prism_vmf"]
    assert all(0 < float(line.split()[1]) < 1 for line in lines[1:])
    desk.key("Escape", 27)
    assert desk.ask(f"{TIP}.hidden")


@pytest.mark.slow
@in_a_browser
def test_a_click_enlarges_a_picture_and_escape_puts_it_back(desk: Browser) -> None:
    desk.click(SVG)
    assert desk.ask(f"{DIALOG}.open")
    assert desk.ask(f"{DIALOG}.querySelectorAll('svg').length") == 1
    caption = desk.ask(f"{DIALOG}.querySelector('figcaption').textContent")
    desk.key("ArrowRight", 39)
    assert desk.ask(f"{DIALOG}.querySelector('figcaption').textContent") != caption
    desk.key("Escape", 27)
    assert not desk.ask(f"{DIALOG}.open")
    assert desk.ask(f"{DIALOG}.querySelectorAll('svg').length") == 0
    figures = "[...document.querySelectorAll('main figure')]"
    assert desk.ask(f"{figures}.every((f) => f.querySelectorAll('svg').length === 2)")
    desk.ask("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    desk.click("document.querySelector('.zoom')")
    assert desk.ask(f"{DIALOG}.querySelector('img').clientWidth") > 200
    desk.click(f"{DIALOG}.querySelector('.close')")
    assert not desk.ask(f"{DIALOG}.open")
    assert desk.ask("document.querySelector('.zoom img') !== null")


@pytest.mark.slow
@in_a_browser
def test_a_telephone_has_nothing_to_scroll_sideways_but_tables(telephone: Browser) -> None:
    assert telephone.ask("document.documentElement.scrollWidth") == 390
    telephone.tap(SVG)
    assert telephone.ask(f"{TIP}.textContent").count("prism") == 2
    assert not telephone.ask(f"{DIALOG}.open")
    telephone.tap("document.querySelector('.enlarge')")
    assert telephone.ask(f"{DIALOG}.open")
    assert telephone.ask(f"{DIALOG}.getBoundingClientRect().right") <= 390

"""The page as a whole, and the command that writes it."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console
from support.synthetic_runs import RunMaker

from noisyml.apps.report import _terminal_tables, main
from noisyml.errors import UserError
from noisyml.reports import load_runs, plots, render_html, result_table, write_report
from noisyml.reports.report import build_report
from noisyml.reports.sections.base import Picture
from noisyml.runs.artefacts import Artefact, save_artefacts

EVIL = "<script>alert(1)</script>"


class References(HTMLParser):
    """Collects what a browser would fetch, and the tags of the page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in {"src", "href", "xlink:href", "srcset", "data", "action"}:
                self.found.append(value or "")


@pytest.mark.long
def test_one_run(maker: RunMaker) -> None:
    run = maker.run("one", "prism_avg", 0.3)
    written = write_report([run.path])
    assert written.html == run.report_file
    html = written.html.read_text()
    metrics = run.metrics()
    assert "method Prism · dataset Glyphs · noise Symmetric · selector prism_avg · seed 0" in html
    assert f"{metrics['test/precision_at_1']:.4f}" in html
    assert f"{metrics['best/test/map_at_r']:.4f}" in html
    assert "noisyml train experiment=demo selector=prism_avg noise.rate=0.3 seed=0" in html
    assert html.count('class="thumb"') == 24
    assert "labelled class" in html
    assert "truth class" in html
    assert {path.name for path in written.plots} == {
        "training_curves.png",
        "kept_set_by_epoch.png",
        "p_clean.png",
        "embedding_map.png",
        "class_maps.png",
    }
    for path in written.plots:
        with Image.open(path) as picture:
            assert picture.width > 400
    assert all((written.markdown.parent / "plots" / p.name).is_file() for p in written.plots)


@pytest.mark.further
def test_the_page_needs_nothing_from_outside(maker: RunMaker) -> None:
    files = ("thumbnails", "map", "class_maps")
    for number, selector in enumerate(("keep_all", "prism_avg")):
        maker.run(f"s/{number}", selector, files=files, pictures=(20, 30, 3))
    html = write_report([maker.root / "s"]).html.read_text()
    references = References(html)
    assert references.found
    assert all(value.startswith(("data:image/png;base64,", "#")) for value in references.found)
    assert not {"link", "iframe", "object", "embed"} & set(references.tags)
    assert references.tags.count("script") == 1
    assert not re.search(r"url\((?!#)|@import|https?://", html)
    uri = next(value for value in references.found if value.startswith("data:"))
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as picture:
        assert picture.format == "PNG"


@pytest.mark.long
def test_names_from_outside_cannot_become_markup(maker: RunMaker) -> None:
    for number, selector in enumerate(("keep_all", f"prism{EVIL}")):
        run = maker.run(
            f"{number} {EVIL.replace('/', '')}",
            selector,
            files=("thumbnails", "map"),
            names=lambda i: f"{EVIL}{i}",
        )
        run.environment_file.write_text(f'{{"device": "{EVIL}"}}')
    failed = maker.run("bad", status={"state": EVIL, "error": EVIL})
    written = write_report([maker.root], title=EVIL)
    html = written.html.read_text()
    assert failed.path.is_dir()
    assert References(html).tags.count("script") == 1
    assert EVIL not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    prose = re.sub(r"^    .*$", "", written.markdown.read_text(), flags=re.MULTILINE)
    assert r"\<script\>" in prose
    assert not re.search(r"(?<!\\)<", prose)


@pytest.mark.usefixtures("undrawn")
def test_a_sweep(sweep: Path, maker: RunMaker) -> None:
    maker.run(
        "demo/12", "prism_avg", 0.5, 3, status={"state": "failed", "error": "The loss is NaN."}
    )
    written = write_report([sweep])
    html, markdown = written.html.read_text(), written.markdown.read_text()
    assert written.html == sweep / "report.html"
    assert "13 runs (12 finished): 2 noise.rate × 2 selector × 4 seeds." in html
    for text in (html, markdown):
        assert "The loss is NaN." in text
        assert "3 of 4" in text
    assert {"test_by_noise_rate.png", "trust_by_noise_rate.png"} == {p.name for p in written.plots}
    assert len(html) < 6e6


def test_many_lines_over_the_rate_are_spread_over_panels(maker: RunMaker) -> None:
    """Of two settings the one with more values gets a panel for each, the other stays lines."""
    losses = ("cbml", "circle", "contrastive", "triplet", "fast_ap")
    for loss in losses:
        for selector in ("keep_all", "prism_vmf"):
            for rate in (0.3, 0.5):
                maker.run(
                    f"s/{loss}-{selector}-{rate}",
                    selector,
                    rate,
                    files=False,
                    metrics={"test/map_at_r": 0.5 - rate / 2, "test/precision_at_1": 0.9 - rate},
                    extra_config={"loss": {"_target_": f"x.{loss}"}},
                    extra_overrides=(f"loss={loss}",),
                )
    pictures = build_report([maker.root / "s"]).across
    names = ["test_by_noise_rate_precision_at_1", "test_by_noise_rate_map_at_r"]
    assert [picture.name for picture in pictures] == names
    axes = pictures[1].figure.axes
    shown = [one for one in axes if one.get_visible()]
    assert {one.get_title(loc="left") for one in shown} == set(losses)
    assert len(axes) == 8
    for one in shown:
        assert [list(line.get_ydata()) for line in one.lines] == [[0.35, 0.25]] * 2
        assert one.get_ylim() == shown[0].get_ylim()
    texts = pictures[1].figure.legends[0].get_texts()
    assert {text.get_text() for text in texts} == {"keep_all", "prism_vmf"}


@pytest.mark.usefixtures("undrawn")
def test_groups_without_a_numeric_axis_become_dots(maker: RunMaker) -> None:
    for number, selector in enumerate(("keep_all", "prism_avg", "prism_vmf")):
        maker.run(f"s/{number}", selector, files=False)
    written = write_report([maker.root / "s"])
    assert [p.name for p in written.plots] == ["test_by_group.png", "trust_by_group.png"]


def test_only_the_noisiest_groups_are_shown_in_detail(maker: RunMaker) -> None:
    number = 0
    for rate in (0.1, 0.3, 0.5, 0.7):
        for selector in ("prism_avg", "prism_vmf"):
            maker.run(f"s/{number}", selector, rate, files=("map",))
            number += 1
    report = build_report([maker.root / "s"])
    assert [detail.title for detail in report.details] == [
        f"noise.rate={rate}, {selector}"
        for rate in (0.3, 0.5, 0.7)
        for selector in ("prism_avg", "prism_vmf")
    ]
    assert "6 groups with most noise, of 8 groups" in report.details_note


@pytest.mark.usefixtures("undrawn")
def test_broken_optional_files_are_told_and_the_rest_is_shown(maker: RunMaker) -> None:
    run = maker.run("one")
    (run.path / "thumbnails.npz").write_bytes(b"PK broken")
    run.selection_file.write_bytes(b"broken")
    run.history_file.write_text("a,b\n1,2\n")
    run.environment_file.write_text("{")
    html = write_report([run.path]).html.read_text()
    for name in ("thumbnails.npz", "selection.parquet", "environment.json"):
        assert html.count(f"{name} cannot be read") == 1
    assert "test embeddings" in html
    assert f"{run.metrics()['test/map_at_r']:.4f}" in html


@pytest.mark.usefixtures("undrawn")
def test_a_bare_run_is_enough(maker: RunMaker) -> None:
    run = maker.run("one", files=False, metrics={"test/accuracy": 0.5})
    run.overrides_file.unlink()
    run.environment_file.unlink()
    written = write_report([run.path])
    assert written.plots == ()
    assert "0.5000" in written.html.read_text()


def test_a_run_that_kept_everything_has_no_section_on_trust(maker: RunMaker) -> None:
    run = maker.run("one", "keep_all", files=("map", "noise"))
    index = range(400)
    columns = {"index": index, "p_clean": float("nan"), "kept": True, "epoch": 0}
    pd.DataFrame(columns).to_parquet(run.selection_file)
    report = build_report([run.path])
    assert [picture.name for picture in report.pictures] == ["embedding_map"]
    assert not report.judged


def test_a_failed_run_says_so(maker: RunMaker) -> None:
    run = maker.run("one", files=False, status={"state": "failed", "error": "No space left."})
    html = write_report([run.path]).html.read_text()
    assert "This run is failed. No space left." in html


@pytest.mark.usefixtures("undrawn")
def test_figures_chosen_on_test_are_marked(maker: RunMaker) -> None:
    run = maker.run(
        "one", files=False, metrics={"test/map_at_r": 0.4, "chosen_on_test/test/map_at_r": 0.5}
    )
    written = write_report([run.path])
    assert "Figures marked CHOSEN ON TEST" in written.html.read_text()
    assert "MAP@R (CHOSEN ON TEST)" in written.markdown.read_text()


@pytest.mark.usefixtures("undrawn")
def test_own_labels_without_truth(maker: RunMaker) -> None:
    run = maker.run("one", files=("noise", "selection", "thumbnails"))
    manifest = pd.read_parquet(run.noise_file)
    manifest.assign(clean=-1, changed=False).to_parquet(run.noise_file)
    with np.load(run.path / "thumbnails.npz", allow_pickle=False) as arrays:
        found = dict(arrays)
    found["clean_name"] = np.full(24, "")
    np.savez(run.path / "thumbnails.npz", **found)
    html = render_html(build_report([run.path]))
    assert "labelled class" in html
    assert "mark-wrong" not in html.partition("<body>")[2]
    assert "truth" not in html.partition("<body>")[2].partition("How to repeat")[0]


@pytest.mark.usefixtures("undrawn")
def test_the_command(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    out = tmp_path / "elsewhere"
    status = main(
        [
            str(sweep),
            "--out",
            str(out),
            "--group-by",
            "selector",
            "--metrics",
            "map_at_r",
            "--title",
            "Selectors [bold]",
        ]
    )
    printed = capsys.readouterr().out
    assert status == 0
    assert (out / "report.html").is_file()
    assert str(out / "report.html") in printed
    assert "Selectors [bold]: 12 runs" in printed
    assert re.search(r"prism_avg +6 +0\.\d{4}±0\.\d{4} +0\.\d{4}±0\.\d{4}", printed)
    assert not (sweep / "report.html").exists()


def test_a_narrow_terminal_gets_several_tables(sweep: Path) -> None:
    table = result_table(load_runs([sweep]))
    for width, parts in ((80, 4), (300, 1)):
        shown = _terminal_tables(table, width)
        assert len(shown) >= parts
        console = Console(width=width, file=io.StringIO())
        for part in shown:
            console.print(part)
        printed = console.file.getvalue()  # type: ignore[attr-defined]
        assert "…" not in printed
        for row in table.rows:
            assert all(f"{cell.mean}±{cell.std}" in printed for cell in row.cells if cell.std)
    assert len(shown) == 1


@pytest.mark.parametrize(
    ("where", "says"), [("nowhere", "There is no folder"), ("", "holds no run")]
)
def test_a_wrong_folder_is_a_sentence(tmp_path: Path, where: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        main([str(tmp_path / where)])


@pytest.mark.parametrize(
    ("metrics", "says"),
    [
        ({"test/map_at_r": 0.5, "val/map_at_r": None}, "it follows was undefined in every epoch"),
        ({"test/map_at_r": 0.5}, "best on validation: there is no validation split"),
        ({"test/map_at_r": 0.5, "val/map_at_r": 0.4, "best/epoch": 2.0}, None),
    ],
)
def test_a_missing_best_model_says_why(maker: RunMaker, metrics, says) -> None:
    choice = {"model_choice": ["last", "best"]}
    run = maker.run("s/0", files=False, metrics=metrics, extra_config=choice)
    found = [n for n in build_report([run.path]).notices if n.startswith("No model is the best")]
    assert [says in notice for notice in found] == ([True] if says else [])


def test_what_was_left_out_is_told(maker: RunMaker) -> None:
    runs = [maker.run(f"s/{n}", seed=seed, files=False) for n, seed in enumerate((0, 0, 1))]
    for run, ended in zip(runs, (1.0, 2.0, 3.0), strict=True):
        run.write_status("finished", ended=ended)
        (run.path / "broken_images.csv").write_text("split,index,key\ntrain,3,a\ntrain,5,b\n")
    notices = build_report([maker.root / "s"]).notices
    assert any(
        n.startswith("1 finished run was left out, because a newer one has the same configuration")
        and n.endswith("s/0.")
        for n in notices
    )
    assert any(
        n.startswith("2 images could not be decoded and were left out in 2 of 2 runs")
        for n in notices
    )
    (runs[2].path / "broken_images.csv").write_text("")
    assert any(
        "broken_images.csv cannot be read" in n for n in build_report([runs[2].path]).notices
    )


@pytest.mark.parametrize(
    ("where", "title"), [("stranger", "stranger"), ("demo/2026-11-22_10-20-04", None)]
)
def test_the_title_is_the_name_of_the_folder(
    maker: RunMaker, where: str, title: str | None
) -> None:
    for seed in (0, 1):
        maker.run(f"{where}/{seed}", seed=seed, files=False)
    assert build_report([maker.root / where]).title == (title or where)


@pytest.mark.usefixtures("undrawn")
def test_thumbnails_show_trust_and_captions_only_what_is_drawn(maker: RunMaker) -> None:
    run = maker.run("one", files=("noise", "selection", "thumbnails"))
    report = build_report([run.path])
    thumb = report.details[0].thumbs[0]
    assert f'<div class="quiet">p_clean {thumb.p_clean}</div>' in render_html(report)
    assert "Precision:" in report.trust[0].caption
    manifest = pd.read_parquet(run.noise_file)
    manifest.assign(clean=-1, changed=False).to_parquet(run.noise_file)
    assert "Precision:" not in build_report([run.path]).trust[0].caption


def test_many_settings_are_listed_once_and_never_cut(maker: RunMaker) -> None:
    keys = [f"head.layers.a_rather_long_setting_{i}" for i in range(8)]
    for number in range(3):
        typed = tuple(f"{key}={number}" for key in keys)
        extra = {"width": number}
        maker.run(f"s/{number}", files=False, extra_config=extra, extra_overrides=typed)
    table = result_table(load_runs([maker.root / "s"], by=keys))
    console = Console(width=80, file=io.StringIO())
    for part in _terminal_tables(table, 80):
        console.print(part)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in printed
    assert all(printed.count(key) == 3 for key in keys)
    for row in table.rows:
        assert all(cell.mean in printed for cell in row.cells)


def test_rates_that_follow_from_the_data_set_are_no_axis(maker: RunMaker) -> None:
    for number, (dataset, rate) in enumerate((("glyphs", 0.5), ("digits", 0.3))):
        extra = {"dataset": {"_target_": f"x.{dataset}"}}
        typed = (f"dataset={dataset}",)
        maker.run(f"s/{number}", rate=rate, files=False, extra_config=extra, extra_overrides=typed)
    report = build_report([maker.root / "s"])
    assert report.table.keys == ("dataset", "noise.rate")
    assert [picture.name for picture in report.across] == ["test_by_group", "trust_by_group"]


def test_data_sets_are_lines_over_the_rate_where_nothing_else_varies(maker: RunMaker) -> None:
    for dataset in ("glyphs", "digits"):
        for rate in (0.3, 0.5):
            extra = {"dataset": {"_target_": f"x.{dataset}"}}
            typed = (f"dataset={dataset}",)
            maker.run(
                f"s/{dataset}{rate}",
                rate=rate,
                files=False,
                extra_config=extra,
                extra_overrides=typed,
            )
    test, _ = build_report([maker.root / "s"]).across
    assert test.name == "test_by_noise_rate"
    assert {text.get_text() for text in test.figure.legends[0].get_texts()} == {"glyphs", "digits"}


@pytest.mark.usefixtures("undrawn")
def test_many_settings_stand_behind_the_results_and_shared_ones_above(maker: RunMaker) -> None:
    for number in range(2):
        maker.run(
            f"s/{number}",
            ("prism_avg", "keep_all")[number],
            files=False,
            extra_config={"width": number, "depth": number, "batch": 32, "rank": number},
            extra_overrides=(f"width={number}", f"depth={number}", f"rank={number}", "batch=32"),
        )
    written = write_report([maker.root / "s"])
    html = written.html.read_text()
    assert "In all runs: method Prism, dataset Glyphs, noise Symmetric, noise.rate 0.5," in html
    assert "batch 32." in html
    for table in re.findall(r'<table class="results">.*?</thead>', html, re.DOTALL):
        headings = re.findall(r"<th[^>]*>([^<]+)</th>", table)
        assert headings.index("MAP@R") < headings.index("selector") < headings.index("width")
        assert "batch" not in headings
    assert '<td class="group">prism_avg, width=0, depth=0, rank=0</td>' in html
    assert written.latex.read_text().startswith("% needs")
    assert written.csv.read_text().startswith("selector,width,depth,rank,runs,")


def test_a_vanishing_share_is_a_readable_number(maker: RunMaker) -> None:
    run = maker.run("one", files=("noise", "thumbnails"))
    with np.load(run.path / "thumbnails.npz", allow_pickle=False) as arrays:
        found = dict(arrays)
    found["p_clean"] = np.array([1.54e-44, 0.0, 1e-4, 0.25, 1 - 1e-9, 1.0, *[0.5] * 18])
    np.savez(run.path / "thumbnails.npz", **found)
    save_artefacts(
        run, [Artefact("worst.csv", pd.DataFrame({"p_clean": [1.54e-44], "lr": [1e-5]}), "Worst")]
    )
    (detail,) = build_report([run.path]).details
    texts = [thumb.p_clean for thumb in detail.thumbs]
    assert texts[:4] == ["0.0000", "< 0.0001", "0.0001", "0.2500"]
    assert texts[-2:] == ["> 0.9999", "1.0000"]
    assert detail.tables[0].rows == (("< 0.0001", "1e-05"),)
    assert "p_clean &lt; 0.0001" in render_html(build_report([run.path]))


def test_metrics_that_nobody_could_compute_are_dashes(maker: RunMaker) -> None:
    for seed in (0, 1):
        maker.run(f"s/{seed}", seed=seed, metrics={"test/map_at_r": None}, files=False)
    table = build_report([maker.root / "s"]).table
    assert [(column.label, str(table.rows[0].cells[0])) for column in table.columns] == [
        ("MAP@R", "–")
    ]
    one = build_report([maker.root / "s" / "0"])
    assert one.cards == [("Test, last checkpoint", [("MAP@R", "–")])]


@pytest.mark.long
def test_figures_tell_their_seeds_and_groups_their_settings(sweep: Path, maker: RunMaker) -> None:
    report = build_report([sweep])
    column = [c.metric for c in report.table.columns].index("test/precision_at_1")
    note = report.notes[0][column]
    runs = load_runs([sweep])
    keep_all = runs[(runs["selector"] == "keep_all") & (runs["noise.rate"] == 0.3)]
    mean = keep_all["test/precision_at_1"].mean()
    assert note.exact == f"{mean:.6g}"
    heading, told, interval, *seeds = note.text.splitlines()
    assert heading == "P@1 (last) (test/precision_at_1)"
    assert told == f"mean {mean:.6g}"
    low, _, high = interval.removeprefix("95% interval ").partition(" (")[0].partition(" to ")
    assert float(low) < mean < float(high)
    assert [line[:8] for line in seeds] == ["seed 0: ", "seed 1: ", "seed 2: "]
    assert report.runs[0].notes[column].exact == f"{keep_all['test/precision_at_1'].iloc[0]:.6g}"

    (table,) = report.configurations
    assert len(table.headings) == 1 + 4
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["noise.rate"] == ("0.3", "0.3", "0.5", "0.5")
    assert rows["selector.warmup"] == ("0", "5", "0", "5")
    assert not any("seed" in key or "dir" in key for key in rows)
    for number, rate in enumerate((0.1, 0.2)):
        maker.run(f"demo/more{number}", "prism_vmf", rate, files=False)
        maker.run(f"demo/again{number}", "keep_all", rate, files=False)
    (table,) = build_report([sweep]).configurations
    assert ("selector.warmup", "0 (4); 7 (2); 5 (2)") in table.rows


def test_curves_are_told_with_the_names_and_digits_of_their_lines(sweep: Path) -> None:
    (first, *_) = build_report([sweep]).across
    panels = json.loads(first.curves)
    assert [line["label"] for line in panels[0]["lines"]] == ["keep_all", "prism_avg"]
    assert panels[0]["x"] == "nominal noise rate"
    point = panels[0]["lines"][0]["points"][0]
    assert point[0] == 0.3
    assert 0 < point[1] < 1
    axes = json.loads(re.search(r'data-axes="([^"]*)"', render_svg(first))[1])
    assert len(axes) == len(panels)
    left, top, right, bottom, low, high, *_ = axes[0]
    assert 0 < left < right
    assert 0 < top < bottom
    assert low < 0.3 < 0.5 < high


def render_svg(picture: Picture) -> str:
    return str(plots.inline_svg(picture.figure, picture.caption))

"""Figures: what they draw, and that the page can carry them."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text
from support.synthetic_runs import RunMaker

from noisyml.reports import plots
from noisyml.reports.plots import Line, Panel
from noisyml.reports.report import build_report, write_report
from noisyml.reports.sections.artefacts import class_maps
from noisyml.reports.sections.artefacts.class_maps import ClassMaps, class_maps_figure
from noisyml.reports.sections.artefacts.embedding_map import NAMED_AMONG_MANY, map_figure
from noisyml.reports.sections.base import Picture


def test_a_long_curve_is_thinned_without_bias() -> None:
    steps = np.arange(10_000)
    history = pd.DataFrame({"step": steps, "loss": steps * 2.0})
    line = plots.curve([history], "loss", "a")
    assert line is not None
    assert len(line.x) == plots.CURVE_POINTS
    assert line.mean.mean() == pytest.approx(steps.mean() * 2)
    assert np.allclose(line.mean, 2 * line.x, atol=60)
    assert np.isnan(line.std).all()


def test_the_mean_curve_of_two_seeds_by_hand() -> None:
    one = pd.DataFrame({"step": [1, 2, 3], "loss": [1.0, np.nan, 3.0]})
    two = pd.DataFrame({"step": [1, 2, 3], "loss": [2.0, 5.0, 5.0]})
    line = plots.curve([one, two], "loss", "a")
    assert line is not None
    assert line.x.tolist() == [1, 2, 3]
    assert line.mean.tolist() == [1.5, 5.0, 4.0]
    assert line.std == pytest.approx([np.sqrt(0.5), np.nan, np.sqrt(2)], nan_ok=True)
    assert plots.curve([one], "accuracy", "a") is None


def test_the_scale_of_a_histogram_follows_the_crowding() -> None:
    rng = np.random.default_rng(0)
    even = rng.random(1000)
    assert plots.choose_scale(even) == "linear"
    saturated = 1 / (1 + np.exp(-rng.normal(0, 20, 1000)))
    assert plots.choose_scale(saturated) == "logit"
    beyond = 10.0 ** -rng.uniform(20, 200, 1000)
    assert plots.choose_scale(beyond) == "rank"
    two_values = np.where(even < 0.3, 0.0, 1.0)
    assert plots.choose_scale(two_values) == "linear"


def test_a_narrow_distribution_fills_its_axis() -> None:
    p_clean = np.random.default_rng(0).uniform(0.06, 0.19, 500)
    axes = plots.trust_figure(p_clean, None).axes[0]
    assert axes.get_xlim() == pytest.approx((0.05, 0.2))


def test_fractions_have_no_axis_beyond_one() -> None:
    x = np.arange(3.0)
    panel = Panel("", "epoch", "recall (fraction)", (Line("a", x, np.ones(3), np.full(3, np.nan)),))
    axes = plots.lines_figure([[panel]], ["a"], markers=False, faceted=False).axes[0]
    assert 1 < axes.get_ylim()[1] < 1.01
    assert all(tick == int(tick) for tick in axes.get_xticks())


def test_a_histogram_counts_every_sample_once() -> None:
    p_clean = np.array([0.01, 0.02, 0.4, 0.6, 0.99, 1.0, 0.0])
    wrong = np.array([True, True, False, True, False, False, True])
    axes = plots.trust_figure(p_clean, wrong).axes[0]
    counts = [patch.get_data().values.sum() for patch in axes.patches]
    assert counts == [3, 3, 4, 4]  # right and wrong, each filled and outlined


def test_svg_is_free_of_references_and_follows_the_page() -> None:
    line = Line("a <b> $x$", np.arange(3.0), np.arange(3.0), np.full(3, 0.1))
    panel = Panel("<script>alert(1)</script>", "step", "loss $", (line,))
    figure = plots.lines_figure([[panel, panel]], ["a <b> $x$"], markers=True, faceted=False)
    svg = str(plots.inline_svg(figure, 'caption "quoted"'))
    assert svg.startswith('<svg class="wide" role="img" aria-label="caption &#34;quoted&#34;"')
    assert "<script" not in svg
    assert "&lt;script&gt;alert(1)" in svg
    assert "loss $" in svg
    assert not re.search(r"https?:|<!DOCTYPE|<\?xml", svg)
    assert "currentColor" in svg
    assert plots.TEXT not in svg


def test_names_with_dollars_and_underscores_are_shown_as_they_are() -> None:
    table = pd.DataFrame(
        {"x": [0.0, 1.0], "y": [0.0, 1.0], "label": [0, 1], "label_name": ["$\\frac", "_hidden"]}
    )
    svg = str(plots.inline_svg(map_figure(table), "map"))
    assert "$\\frac" in svg
    assert "_hidden" in svg


def _class_maps(kinds: list[str]) -> ClassMaps:
    n = len(kinds)
    given, answer = np.zeros((n, 2, 2)), np.zeros((n, 2, 2))
    given[:, 0, 0], given[:, 1, 1], answer[:] = 2.0, -4.0, 1.0
    names = np.array([f"$class_{i}" for i in range(n)])
    images = np.full((n, 8, 8), 128, dtype=np.uint8)
    return ClassMaps(images, given, answer, names, names, names, np.array(kinds))


@pytest.mark.long
def test_class_maps_show_what_speaks_for_a_label_and_what_against_it() -> None:
    figure = class_maps_figure(_class_maps(["label right", "label wrong", "label wrong"]))
    halves = figure.subfigs
    assert [half._suptitle.get_text() for half in halves] == ["label right", "label wrong"]
    assert [len([a for a in half.axes if a.images]) for half in halves] == [3, 6]
    image, given, answer = halves[0].axes[:3]
    assert [axes.get_title() for axes in (image, given, answer)] == [
        r"true: \$class_0",
        r"given: \$class_0",
        r"answer: \$class_0",
    ]
    pixels = np.asarray(given.images[0].get_array()).astype(int)
    assert pixels.shape == (160, 160, 3)
    # The strongest of both maps, -4, has the full colour.
    (towards, against), plain = (pixels[0, 0], pixels[-1, -1]), pixels[0, -1]
    assert towards[0] > plain[0] > against[0]
    assert against[2] > plain[2] > towards[2]
    assert abs(against - class_maps._rgb(class_maps.AGAINST_COLOUR)).max() < 25
    assert abs(towards - class_maps._rgb(class_maps.FOR_COLOUR)).max() > 35
    assert len(str(plots.inline_svg(figure, "maps"))) > 1000


@pytest.mark.long
def test_class_maps_of_one_kind_fill_both_columns() -> None:
    figure = class_maps_figure(_class_maps([""] * 5))
    assert [len([a for a in half.axes if a.images]) for half in figure.subfigs] == [9, 6]
    alone = class_maps_figure(_class_maps([""]))
    assert [len([a for a in half.axes if a.images]) for half in alone.subfigs] == [3, 0]


def test_many_classes_get_a_short_legend() -> None:
    label = np.arange(300) % 30
    table = pd.DataFrame(
        {"x": label, "y": label, "label": label, "label_name": [f"n{i}" for i in label]}
    )
    texts = [t.get_text() for t in map_figure(table).legends[0].get_texts()]
    assert len(texts) == NAMED_AMONG_MANY + 1
    assert texts[-1] == f"{30 - NAMED_AMONG_MANY} other classes"


def test_a_label_keeps_its_colour_in_every_figure() -> None:
    def colours(labels: list[str]) -> dict[str, object]:
        x = np.arange(2.0)
        lines = tuple(Line(label, x, x, x) for label in labels)
        panels = [[Panel("", "", "", lines)]]
        axes = plots.lines_figure(panels, ["a", "b", "c"], markers=False, faceted=False).axes[0]
        return {label: ln.get_color() for label, ln in zip(labels, axes.lines, strict=True)}

    assert colours(["a", "b", "c"])["c"] == colours(["c"])["c"] != colours(["a"])["a"]


def test_a_loss_that_runs_away_does_not_flatten_the_others():
    x, nothing = np.arange(20.0), np.full(20, np.nan)

    def limits(*levels):
        lines = [Line(f"{level}", x, level * np.linspace(1, 2, 20), nothing) for level in levels]
        panels = [[Panel("", "step", "training loss", tuple(lines))]]
        order = [line.label for line in lines]
        return plots.lines_figure(panels, order, markers=False, faceted=False).axes[0].get_ylim()

    low, high = limits(0.5, 0.6, 0.7, 0.8, -1e5)
    assert -10 < low < 0.5
    assert 1.6 < high < 20
    low, high = limits(0.5, 0.6, 0.7, 0.8, 3.0)
    assert high > 6


def test_a_long_legend_makes_the_figure_higher_not_the_panels_lower():
    x, nothing = np.arange(3.0), np.full(3, np.nan)

    def heights(number):
        names = [f"a rather long name of a group, number {i}" for i in range(number)]
        panel = Panel("", "step", "training loss", tuple(Line(n, x, x, nothing) for n in names))
        figure = plots.lines_figure([[panel, panel]], names, markers=False, faceted=False)
        figure.draw_without_rendering()
        return figure.axes[0].get_position().height * figure.get_figheight()

    assert heights(20) > 0.9 * heights(1)


def test_panels_that_share_an_axis_show_all_their_curves():
    x, nothing = np.arange(3.0), np.full(3, np.nan)
    panels = [
        Panel(name, "epoch", "share (fraction)", (Line("a", x, level + 0.01 * x, nothing),))
        for name, level in (("high", 0.9), ("low", 0.2))
    ]
    figure = plots.lines_figure([panels], ["a"], markers=False, faceted=True)
    for axes in figure.axes:
        low, high = axes.get_ylim()
        assert low < 0.2
        assert high > 0.92


def test_a_single_epoch_is_a_marked_point_at_an_integer() -> None:
    one = Line("a", np.zeros(1), np.full(1, 0.5), np.full(1, np.nan))
    panels = [[Panel("", "epoch", "share (fraction)", (one,))]]
    axes = plots.lines_figure(panels, ["a"], markers=False, faceted=False).axes[0]
    assert axes.get_xlim() == (-1, 1)
    assert axes.get_xticks().tolist() == [0]
    assert axes.lines[0].get_marker() != "None"


def every_picture(maker: RunMaker) -> list[Picture]:
    """Pictures of one run, of a sweep over rates and of groups."""
    run = maker.run("one", "prism_vmf", 0.3)
    for number, (selector, rate) in enumerate(
        (s, r) for s in ("keep_all", "prism_avg") for r in (0.3, 0.5)
    ):
        maker.run(f"s/{number}", selector, rate, files=("history",))
        maker.run(f"g/{number}", f"{selector}_{number}_with_a_long_name", files=False)
    folders = (run.path, maker.root / "s", maker.root / "g")
    return [picture for folder in folders for picture in build_report([folder]).pictures]


@pytest.mark.further
def test_pictures_for_a_telephone_are_read_without_scrolling(maker: RunMaker) -> None:
    pictures = every_picture(maker)
    names = {picture.name for picture in pictures}
    assert {"training_curves", "p_clean", "embedding_map", "class_maps", "test_by_group"} <= names
    for picture in pictures:
        figure = picture.narrow
        # A column of 360 pixels shows 3.75 inches at their own size: 96 pixels are 72 points.
        assert figure.get_figwidth() == plots.NARROW == 360 / 96
        sizes = {t.get_fontsize() for t in figure.findobj(Text) if t.get_text() and t.get_visible()}
        assert min(sizes) * 96 / 72 >= 10, picture.name
        figure.draw_without_rendering()
        drawn = figure.get_tightbbox()
        assert drawn.x0 > -0.03, picture.name
        assert drawn.x1 < plots.NARROW + 0.1, picture.name


@pytest.mark.long
def test_the_page_has_each_picture_for_both_widths(maker: RunMaker) -> None:
    run = maker.run("one", files=("map", "history"))
    html = write_report([run.path]).html.read_text()
    assert html.count('<svg class="wide"') == html.count('<svg class="narrow"') == 2
    assert re.search(r"max-width: 640px\) \{[^@]*svg\.wide \{ display: none", html)
    ids = re.findall(r'<clipPath id="([^"]+)"', html)
    wide = re.findall(r'<svg class="wide".*?</svg>', html, re.DOTALL)
    inside = {found for svg in wide for found in re.findall(r'<clipPath id="([^"]+)"', svg)}
    assert inside
    assert len(inside) < len(set(ids))

"""Names in scripts that the usual font lacks, in pictures and beside them."""

import numpy as np
import pytest
from matplotlib.text import Text
from support.synthetic_runs import RunMaker

from noisyml.reports import fonts, plots
from noisyml.reports.plots import Line, Panel
from noisyml.reports.report import build_report, save_report

NAMES = ("猫", "cat", "日本 東京", "кот éß")


@pytest.fixture
def no_fallbacks(monkeypatch):
    """A machine with the usual fonts alone."""
    monkeypatch.setattr(fonts, "FALLBACKS", ())


@pytest.fixture
def cat_font(tmp_path, monkeypatch):
    """A family that has a square for one sign, installed."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen
    from matplotlib.font_manager import fontManager

    pen = TTGlyphPen(None)
    for step, (x, y) in enumerate(((0, 0), (0, 800), (800, 800), (800, 0))):
        (pen.lineTo if step else pen.moveTo)((x, y))
    pen.closePath()
    square, family = pen.glyph(), "One Cat"
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "cat"])
    builder.setupCharacterMap({ord("猫"): "cat"})
    builder.setupGlyf({".notdef": square, "cat": square})
    builder.setupHorizontalMetrics({".notdef": (900, 0), "cat": (900, 0)})
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "cat.ttf")
    monkeypatch.setattr(fontManager, "ttflist", list(fontManager.ttflist))
    fontManager.addfont(tmp_path / "cat.ttf")
    monkeypatch.setattr(fonts, "FALLBACKS", (family,))
    return family


def dots(labels):
    nothing = np.full(1, np.nan)
    lines = tuple(Line(label, np.zeros(1), np.full(1, 0.5), nothing) for label in labels)
    return plots.dots_figure([Panel("犬 " + labels[0], "P@1", "", lines)], labels)


def texts(figure):
    return {text.get_text() for text in figure.findobj(Text)}


@pytest.mark.filterwarnings("error::UserWarning")
def test_what_no_font_has_becomes_a_number(no_fallbacks, tmp_path):
    numbers: dict[str, int] = {}
    figure = dots(NAMES)
    fonts.make_writable(figure, numbers)
    assert numbers == {"猫": 1, "日本 東京": 2, "犬 猫": 3}
    assert {"[1]", "cat", "[2]", "кот éß", "[3]"} <= texts(figure)
    plots.save_png(figure, tmp_path / "dots.png")
    fonts.make_writable(figure, numbers)
    assert len(numbers) == 3


@pytest.mark.filterwarnings("error::UserWarning")
def test_an_installed_font_draws_what_it_has(cat_font, tmp_path):
    numbers: dict[str, int] = {}
    figure = dots(NAMES)
    fonts.make_writable(figure, numbers)
    assert numbers == {"日本 東京": 1, "犬": 2}
    assert {"猫", "[2] 猫"} <= texts(figure)
    (label,) = [text for text in figure.axes[0].get_yticklabels() if text.get_text() == "猫"]
    assert label.get_fontfamily()[-1] == cat_font
    plots.save_png(figure, tmp_path / "dots.png")
    svg = str(plots.inline_svg(figure, "dots"))
    assert "猫" in svg
    assert "日本" not in svg


@pytest.mark.further
def test_numbers_are_told_beside_the_picture(no_fallbacks, maker: RunMaker):
    run = maker.run("one", files=("map", "class_maps"), names=lambda i: NAMES[i % 4])
    report = build_report([run.path])
    written = save_report(report, run.path)
    for picture in report.pictures:
        assert picture.named.startswith("In the picture: [1] 猫, [2] 日本 東京")
        assert {"[1]", "[2]"} <= {text.split(": ")[-1] for text in texts(picture.narrow)}
    assert "two principal axes. In the picture: [1] 猫" in written.html.read_text()
    assert r"In the picture: \[1\] 猫, \[2\] 日本 東京." in written.markdown.read_text()


def test_plain_names_need_neither(maker: RunMaker):
    run = maker.run("one", files=("map",))
    assert [picture.named for picture in build_report([run.path]).pictures] == [""]

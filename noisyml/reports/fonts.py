"""Fonts for names in any script: what the usual font lacks is drawn in another, or numbered."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties

#: Families that have signs of many scripts, tried in this order where they are installed.
FALLBACKS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans CJK KR",
    "Noto Sans CJK TC",
    "Source Han Sans SC",
    "Source Han Sans JP",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
    "IPAexGothic",
    "IPAGothic",
    "TakaoGothic",
    "NanumGothic",
    "PingFang SC",
    "Hiragino Sans",
    "Hiragino Sans GB",
    "Apple SD Gothic Neo",
    "Microsoft YaHei",
    "Yu Gothic",
    "MS Gothic",
    "Malgun Gothic",
    "SimHei",
    "Arial Unicode MS",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
    "Noto Sans Arabic",
    "Noto Sans Hebrew",
    "Unifont",
)


def make_writable(figure: Figure, numbers: dict[str, int]) -> None:
    """Give the texts of a figure fonts that have their signs; what no font has becomes ``[1]``.

    Args:
        figure: drawn, but not written yet.
        numbers: number of each piece of text that no font has; new ones are added.
    """
    from matplotlib.text import Text

    for axis in [axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]:
        # What names the ticks would otherwise write the old names again.
        labels = axis.get_ticklabels()
        before = [label.get_text() for label in labels]
        after = [
            _numbered(label.get_text(), label.get_fontproperties(), numbers) for label in labels
        ]
        if after != before:
            axis.set_ticks(axis.get_ticklocs(), after)
            axis.get_ticklabels()
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if not text.get_text().isascii():
            usual = text.get_fontproperties()
            text.set_text(_numbered(text.get_text(), usual, numbers))
            own = _signs_of(_file(usual))
            if not own.issuperset(_signs(text.get_text())):
                text.set_fontfamily([*usual.get_family(), *_installed()])


def _numbered(text: str, usual: FontProperties, numbers: dict[str, int]) -> str:
    """A text whose parts that no font has are numbers in brackets."""
    if text.isascii():
        return text
    known = _signs_of(_file(usual)).union(*map(_signs_of, _installed().values()))
    missing = "".join(sorted(_signs(text) - known))
    if not missing:
        return text
    part = re.escape(missing)
    return re.sub(
        f"[{part}](?:[{part}\\s]*[{part}])?",
        lambda found: f"[{numbers.setdefault(found[0], len(numbers) + 1)}]",
        text,
    )


def _signs(text: str) -> set[str]:
    return {sign for sign in text if not sign.isspace()}


def _file(usual: FontProperties) -> str:
    from matplotlib.font_manager import findfont

    return str(findfont(usual))


@functools.cache
def _signs_of(file: str) -> frozenset[str]:
    """The signs that a font file has."""
    from matplotlib.ft2font import FT2Font

    return frozenset(map(chr, FT2Font(file).get_charmap()))


def _installed() -> dict[str, str]:
    """Files of the families of `FALLBACKS` that are installed."""
    from matplotlib.font_manager import fontManager

    files = {entry.name: str(entry.fname) for entry in reversed(fontManager.ttflist)}
    return {family: files[family] for family in FALLBACKS if family in files}

"""Captions from the texts of published data sets.

Formats as read by the code of OTTER (github.com/facebookresearch/OTTER, MIT).
"""

from __future__ import annotations

import re
from urllib.parse import unquote

_TAG = re.compile(r"<.*?>")


def clean_flickr_text(text: str) -> str:
    """A title or description of YFCC100M: percent-decoded, ``+`` as a blank, without tags.

    A plus sign that was encoded is lost, as in the release.

    Example:
        >>> clean_flickr_text("My+%3Cb%3Ecat%3C%2Fb%3E+photo")
        'My cat photo'
    """
    return _TAG.sub("", unquote(text).replace("+", " "))


def flickr_caption(title: str, description: str) -> str:
    """The caption of an image of YFCC15M.

    Example:
        >>> flickr_caption("Hello+World", "100%25+pure")
        'Hello World. 100% pure'
    """
    return f"{clean_flickr_text(title)}. {clean_flickr_text(description)}"


def wit_row(line: str, released: bool = False) -> tuple[str, str]:
    """Path and caption in a line of WIT's ``process_labels.csv``, TAB-separated.

    All fields after the path make the caption.

    Args:
        line: with its line end.
        released: join the fields by nothing and keep the line end, as the release does; else they
            are stripped and joined by a blank.

    Example:
        >>> wit_row("a.jpg\\tfirst part\\tsecond part\\n")
        ('a.jpg', 'first part second part')
        >>> wit_row("a.jpg\\tfirst part\\tsecond part\\n", released=True)
        ('a.jpg', 'first partsecond part\\n')
    """
    path, *fields = line.split("\t")
    if released:
        return path, "".join(fields)
    return path.strip(), " ".join(field.strip() for field in fields if field.strip())

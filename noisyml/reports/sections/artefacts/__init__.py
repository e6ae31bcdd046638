"""Sections about one run: every module here that has a ``SECTION`` shows artefacts of its own."""

from __future__ import annotations

import functools
import importlib
import pkgutil

from noisyml.reports.sections.base import RunSection


@functools.cache
def run_sections() -> tuple[RunSection, ...]:
    """The sections in the order of the page."""
    names = [f"{__name__}.{found.name}" for found in pkgutil.iter_modules(__path__)]
    sections = [importlib.import_module(name).SECTION for name in names]
    return tuple(sorted(sections, key=lambda section: section.place))

"""What holds for all tests: one thread a process, and no reference vector may lie unused."""

import gc
import importlib
import os
import shutil
from pathlib import Path

# Set before any library counts the cores. Several processes share them, and sums in another order
# round otherwise: a run in this process must equal one in a process that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from support import forking, paths
from support.reference_vectors import OPENED, unused_vectors

from noisyml.conformance.forked import PRELOAD

# The tests write and remove tens of thousands of small files: in memory where a system offers that,
# as on a disk each of them may take milliseconds.
MEMORY = Path("/dev/shm")
if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 4 << 30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))
# Commands that a test starts run this checkout, and find the callbacks of `support`.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(paths.ROOT), str(paths.TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
)
# What the processes that tests fork import beside what a training run does.
PRELOAD += ["pytest", "support.composing"]


#: Folders of tests whose tests all have a marker, for `make test-fast`.
MARKED = {"e2e": "command", "ddp": "processes", "conformance": "processes"}
#: What pyproject.toml selects unless told otherwise.
DEFAULT = "not slow and not further"
#: Markers of the tests that may start processes.
FORKED = ("command", "processes")
#: Tools that make a test one of whole commands, wherever it stands.
TOOLS = {"shell"}
#: Functions that make a test which calls them one of process groups, wherever it stands.
STARTERS = {"run_ranks"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session):
    """Compositions are kept, but not where tests are only handed out to others."""
    if not session.config.pluginmanager.has_plugin("dsession"):
        importlib.import_module("support.composing")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Whole commands and process groups are marked by the folder and the tools of their test."""
    for item in items:
        folder = (
            item.path.relative_to(paths.TESTS).parts[0] if paths.TESTS in item.path.parents else ""
        )
        if folder in MARKED:
            item.add_marker(MARKED[folder])
        elif TOOLS & set(getattr(item, "fixturenames", ())):
            item.add_marker("command")
        called = getattr(getattr(item, "function", None), "__code__", None)
        if called and STARTERS & set(called.co_names):
            item.add_marker("processes")


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session):
    """Tests that start processes fork them from one that is as this one before any test."""
    started = any(item.get_closest_marker(marker) for item in session.items for marker in FORKED)
    if started:
        for module in PRELOAD:
            importlib.import_module(module)
    # What was imported stays: looking through it for garbage takes a second each time.
    gc.freeze()
    if started and hasattr(os, "fork") and not session.config.option.collectonly:
        forking.serve()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """A worker is done: what it opened counts for all."""
    OPENED.update(getattr(node, "workeroutput", {}).get("opened", ()))


def pytest_sessionfinish(session, exitstatus):
    """A run of the whole suite that passed must have opened every reference vector."""
    config = session.config
    if hasattr(config, "workeroutput"):
        config.workeroutput["opened"] = sorted(OPENED)
        return
    whole = config.args == ["tests"] and not config.option.keyword
    if not whole or config.option.markexpr != DEFAULT or exitstatus != pytest.ExitCode.OK:
        return
    if config.option.collectonly:
        return
    unused = unused_vectors(OPENED)
    if unused:
        print(f"\nFAILED: reference vectors that no test has opened: {', '.join(unused)}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def undrawn(monkeypatch):
    """Pictures, which take most of a report's time, are left out: for tests of what is written."""
    monkeypatch.setattr("noisyml.reports.plots.save_png", lambda figure, path: None)
    monkeypatch.setattr("noisyml.reports.plots.inline_svg", lambda *figure, **shown: "")
    monkeypatch.setattr("noisyml.reports.sections.base.Picture.figure", None)
    monkeypatch.setattr("noisyml.reports.sections.base.Picture.narrow", None)
    monkeypatch.setattr("noisyml.reports.sections.base.Picture.named", "")

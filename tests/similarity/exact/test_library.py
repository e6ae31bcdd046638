"""The library of compiled loops: its forms for vector units, and which of them is taken."""

import ctypes
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from support import paths
from support.shell import shell as shell
from support.units import UNITS

from noisyml.errors import UserError
from noisyml.metrics.retrieval import retrieval_metrics
from noisyml.similarity.exact import kernels, quantised
from noisyml.similarity.exact.loops import library
from noisyml.similarity.kmeans import kmeans
from noisyml.similarity.search import self_topk

sys.path.insert(0, str(paths.ROOT / "scripts"))
import build_kernels

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here")
compiled = pytest.mark.skipif(not UNITS, reason="no compiled loops here")


@pytest.fixture
def fresh(monkeypatch):
    """The choice is made anew, without what the environment asks for."""
    monkeypatch.delenv(library.UNIT, raising=False)
    library.chosen.cache_clear()
    yield
    library.chosen.cache_clear()


@pytest.fixture
def another_library(fresh, monkeypatch, tmp_path):
    """A path that the loops are looked for at instead."""
    path = tmp_path / "another.so"
    monkeypatch.setattr(library, "LIBRARY", path)
    return path


@compiled
@pytest.mark.parametrize("unit", UNITS)
def test_every_form_gives_the_bits_of_plain_c(unit):
    # One and the same number for all inputs would hide a difference.
    assert UNITS["plain"].answers(0, 6) != UNITS["plain"].answers(1, 6)
    for seed in range(10):
        assert UNITS[unit].answers(seed, 12) == UNITS["plain"].answers(seed, 12)


@compiled
def test_the_fastest_form_is_taken_but_for_what_the_environment_says(fresh, monkeypatch):
    assert library.chosen().unit == next(iter(UNITS))
    for unit in UNITS:
        library.chosen.cache_clear()
        monkeypatch.setenv(library.UNIT, unit)
        assert library.chosen().unit == unit
    library.chosen.cache_clear()
    monkeypatch.setenv(library.UNIT, "off")
    assert not kernels.available()


@compiled
def test_a_form_that_is_not_there_is_one_sentence(fresh, shell, monkeypatch):
    monkeypatch.setenv(library.UNIT, "avx9")
    np.save("mine.npy", np.eye(20, dtype=np.float32))
    status, said = shell("knn", "embeddings=mine.npy", "k=2", "hydra.run.dir=out")
    assert status == 2
    assert f"avx9 is no form of the search loops that runs here (there are {', '.join(UNITS)}" in (
        said
    )


def test_a_library_that_is_not_there_or_broken_is_not_used(another_library, caplog, monkeypatch):
    with caplog.at_level(logging.INFO):
        assert not kernels.available()
        assert "The search loops are not compiled here" in caplog.text
        library.chosen.cache_clear()
        another_library.write_bytes(b"not a library")
        assert not kernels.available()
        assert "cannot be loaded" in caplog.text
    monkeypatch.setenv(library.UNIT, "plain")
    with pytest.raises(UserError, match="there are none: they are not compiled"):
        library.chosen.cache_clear() or kernels.available()


@needs_compiler
def test_a_library_of_another_version_is_not_used(another_library, caplog, tmp_path):
    source = tmp_path / "another.c"
    source.write_text("int noisyml_interface(void) { return -1; }\n")
    subprocess.run(["cc", "-shared", "-fPIC", source, "-o", another_library], check=True)
    with caplog.at_level(logging.WARNING):
        assert not kernels.available()
    assert "belong to another version of noisyml" in caplog.text


def copied(folder: Path) -> Path:
    """A copy of what the loops are compiled of, in a project of its own."""
    shutil.copytree(paths.ROOT / build_kernels.SOURCES, folder / build_kernels.SOURCES)
    (folder / "scripts").mkdir()
    return Path(shutil.copy(build_kernels.__file__, folder / "scripts"))


@needs_compiler
@pytest.mark.long
def test_the_loops_compile_and_say_which_version_they_are(tmp_path):
    script = [sys.executable, str(copied(tmp_path))]
    subprocess.run(script, check=True)
    made = ctypes.CDLL(str(tmp_path / build_kernels.LIBRARY))
    assert made.noisyml_interface() == library.INTERFACE
    missing = subprocess.run(
        script, env={"CC": "no-such-compiler", "PATH": ""}, capture_output=True, text=True
    )
    assert missing.returncode == 1
    assert "The search loops are not compiled: no-such-compiler does not run" in missing.stderr


@needs_compiler
@pytest.mark.skipif("avx2" not in UNITS, reason="a form for AVX2 is spoiled")
@pytest.mark.long
def test_a_form_that_gives_other_bits_is_left_aside(another_library, caplog, monkeypatch, tmp_path):
    copied(tmp_path)
    spoiled = tmp_path / build_kernels.SOURCES / "avx2.c"
    text = spoiled.read_text()
    order = "_mm256_add_ps(_mm256_add_ps(s0, s1), _mm256_add_ps(s2, s3))"
    assert order in text
    spoiled.write_text(
        text.replace(order, order.replace("s1", "s4").replace("s2", "s1").replace("s4", "s2"))
    )
    monkeypatch.setattr(build_kernels, "OPTIONS", [*build_kernels.OPTIONS, "-O0"])
    assert build_kernels.build(tmp_path) is None
    monkeypatch.setattr(library, "LIBRARY", tmp_path / build_kernels.LIBRARY)
    with caplog.at_level(logging.WARNING):
        assert library.chosen().unit == "plain"
    assert "loops for avx2 give other bits here than plain C" in caplog.text
    library.chosen.cache_clear()
    monkeypatch.setenv(library.UNIT, "avx2")
    with pytest.raises(UserError, match="leave NOISYML_KERNELS=avx2 out"):
        library.chosen()


@compiled
def test_search_metrics_and_clusters_are_the_same_by_every_form(fresh, monkeypatch):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(900, 40, generator=generator)
    labels = torch.randint(40, (900,), generator=generator)
    monkeypatch.setattr(quantised, "LEAST_WORK", 0)
    # Integer products are taken for cheap even of so few rows, and by plain C.
    monkeypatch.setattr(quantised, "_CANDIDATE_COST", {"int8_loops": 0, "int8_onednn": 0})
    monkeypatch.setattr(quantised, "_FLOAT32_COST_OF_FORMS", {})
    scans = mock.Mock(side_effect=kernels.scan_integers)
    monkeypatch.setattr(kernels, "scan_integers", scans)

    def answers():
        return [
            *self_topk(x, 7, precision="fast", query_block=256),
            *retrieval_metrics(x, labels, return_per_query=True)[1].values(),
            kmeans(x, 5, seed=0).labels,
        ]

    expected = answers()
    for unit in ("plain", "off"):
        library.chosen.cache_clear()
        monkeypatch.setenv(library.UNIT, unit)
        scans.reset_mock()
        for one, other in zip(expected, answers(), strict=True):
            assert torch.equal(one.nan_to_num(-1), other.nan_to_num(-1))
        assert scans.called == (unit != "off")

"""The command line before any heavy import."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from noisyml import cli
from noisyml.command.sweeps import swept_keys
from noisyml.command.words import overrides_in


def run(*arguments, **env):
    return subprocess.run(
        [sys.executable, "-m", "noisyml", *arguments],
        capture_output=True, text=True, timeout=60, env={**os.environ, **env}, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--version"], ["trian"]])
def test_help_and_misspelt_verbs_import_nothing_heavy(arguments):
    code = (
        f"import sys; sys.argv=['noisyml', *{arguments!r}]\nfrom noisyml import cli\ncli.main()\n"
        "heavy = {'torch', 'hydra', 'numpy', 'pandas', 'lightning'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_names_every_verb_with_its_line():
    said = run("--help").stdout
    for verb, line in cli.verbs().items():
        assert verb in said
        assert line in said
        assert line.endswith(".")


def test_every_verb_is_one_file_with_a_main():
    import importlib

    for verb in cli.verbs():
        assert callable(importlib.import_module(cli.module_name(verb)).main)


def test_a_command_on_a_terminal_is_answered_before_anything_is_loaded(monkeypatch, capsys):
    told = []

    def load(name):
        told.append(capsys.readouterr().err)
        return SimpleNamespace(main=lambda rest: 0)

    monkeypatch.setattr(cli.importlib, "import_module", load)
    for terminal in (True, False):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal, raising=False)
        for typed in (["train", "seed=1"], ["train", "--cfg", "job"], ["list", "noise"]):
            assert cli.run(typed) == 0
    assert told == ["noisyml train: loading libraries ...\n", *[""] * 5]


def test_debug_shows_the_traceback_and_otherwise_there_is_none():
    assert "Traceback" not in run("trian").stderr
    assert "Traceback" in run("trian", NOISYML_DEBUG="1").stderr


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("noisyml tr", "train"),
        ("noisyml train selector=prism_v", "selector=prism_vmf"),
        ("noisyml train noise=sym", "noise=symmetric"),
        ("noisyml train trainer.max_ep", "trainer.max_epochs="),
        ("noisyml data ", "check"),
        ("noisyml data sh", "show"),
        ("noisyml data check dataset=dig", "dataset=digits"),
    ],
)
@pytest.mark.long
def test_the_shell_completes_verbs_groups_and_keys(line, expected):
    done = run("-sc", "query=bash", COMP_LINE=line, COMP_POINT=str(len(line)))
    assert expected in done.stdout.split(), done.stderr


@pytest.mark.long
def test_the_completion_script_is_for_this_command():
    said = run("-sc", "install=bash").stdout
    assert "-sc query=bash" in said


def test_what_a_sweep_varies_is_known():
    typed = ["-m", "--config-dir", "x", "seed=0,1,2", "noise.rate=0.3,0.5", "name=a"]
    assert overrides_in(typed) == ["seed=0,1,2", "noise.rate=0.3,0.5", "name=a"]
    assert swept_keys(typed, {}) == {"seed": 3, "noise.rate": 2}
    params = {"noise.rate": "0.1,0.2,0.3", "selector": "a,b", "seed": 1}
    assert swept_keys(typed, params) == {"selector": 2, "seed": 3, "noise.rate": 2}
    assert swept_keys(["-m", "selector=a"], params) == {"noise.rate": 3}

"""Commands of the pages for users really run, with tiny settings, on data of the kind they name."""

import shutil

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from support import paths
from support.snippets import command_lines, snippets

from noisyml.conformance.recipes import TINY
from scripts.docs_site import methods

#: Pages whose commands build on one another, from top to bottom.
PAGES = ("docs/quickstart.md", "docs/cookbook.md")
#: Seconds of training.
SHORT = ("trainer.max_epochs=1", "report=false")


@pytest.fixture
def own_data(shell):
    """Data of a reader: folder of images, tables and arrays, in the working folder."""
    digits = load_digits()
    rows = {"labels": [], "several": [], "pairs": []}
    for number, (picture, label) in enumerate(
        zip(digits.images[:200], digits.target[:200], strict=True)
    ):
        file = shell.folder / "photos" / str(label) / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        grey = Image.fromarray((picture * 15).astype(np.uint8)).resize((32, 32))
        grey.convert("RGB").save(file)
        place = file.relative_to(shell.folder)
        rows["labels"].append(f"{place},{label}")
        rows["several"].append(f"{place},{label}; {'odd' if label % 2 else 'even'}")
        rows["pairs"].append(f"{place},the digit {label}")
    heads = {"labels": "path,label", "several": "path,labels", "pairs": "path,caption"}
    for name, lines in rows.items():
        (shell.folder / f"{name}.csv").write_text("\n".join([heads[name], *lines]) + "\n")
    (shell.folder / "names.txt").write_text("".join(f"the digit {d}\n" for d in range(10)))
    (shell.folder / "decisions.csv").write_text("path,decision,label\n")
    features = digits.data[:200].astype(np.float32)
    np.save(shell.folder / "features.npy", features)
    np.savez(shell.folder / "features.npz", features=features, labels=digits.target[:200])
    return shell.folder


def commands(page):
    text = (paths.ROOT / page).read_text(encoding="utf-8")
    for snippet in snippets(text, page):
        if snippet.language == "bash":
            yield from (words for words in command_lines(snippet) if words[0] == "noisyml")


def filled_in(words, shell):
    """The words with the folders of the last runs, and short training."""
    runs = sorted(shell.runs(), key=lambda run: run.stat().st_mtime)
    found = []
    for word in words[1:]:
        for name in ("outputs/train/first/TIME", "outputs/train/cleaned/TIME"):
            made = [run for run in runs if run.is_relative_to(shell.folder / name[:-5])]
            word = word.replace(name, str(made[-1])) if made else word
        found.append(word.replace("RUN_DIR", str(runs[-1])) if runs else word)
    if found[0] == "train" and not any(word.startswith("resume=") for word in found):
        found += SHORT
        # The reader's data are a few hundred rows here.
        found += ["sampler.batch_size=64"] if "method=tldr" in found else []
    return found


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run_one_after_the_other(page, shell, own_data):
    failed = {}
    for words in commands(page):
        if "runs/cleaned" in " ".join(words) and not (shell.folder / "runs").exists():
            home = next(
                (shell.folder / "outputs" / "train" / "cleaned").glob("*/config.yaml")
            ).parent
            shutil.copytree(home, shell.folder / "runs" / "cleaned")
        typed = filled_in(words, shell)
        status, said = shell(*typed)
        if status:
            failed[" ".join(typed)] = said[-400:]
    assert not failed, "\n".join(f"{words}\n    {said}" for words, said in failed.items())


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", methods.method_names())
def test_the_command_of_a_method_runs(name, shell):
    words = [*methods.command(name).split()[1:], "trainer.max_epochs=2", "report=false"]
    words += ["scheduler.warmup_epochs=1"] if name == "tldr" else []
    if TINY[name].parts.get("dataset", "") == "glyphs":
        words += ["dataset.num_train_classes=40"]
    status, said = shell(*words)
    assert status == 0, said

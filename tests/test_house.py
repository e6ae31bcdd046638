"""The layout of the package: sizes of files and folders, and how docstrings begin."""

import ast
import re
from pathlib import Path

import pytest
from support import paths

PACKAGE = paths.ROOT / "noisyml"
FILES = sorted(PACKAGE.rglob("*.py"))
LONGEST_FILE = 620
MODULES_IN_A_FOLDER = 12
#: A first line names the thing or the act.
OPENINGS = re.compile(r"(What|Which|How|Whether|Where|Who)\b")


def name(path: Path) -> str:
    return str(path.relative_to(paths.ROOT))


def test_no_file_is_too_long_to_read():
    lengths = {name(file): len(file.read_text().splitlines()) for file in FILES}
    assert len(lengths) > 200
    assert {file: lines for file, lines in lengths.items() if lines > LONGEST_FILE} == {}


def test_no_folder_holds_too_many_modules():
    folders = {file.parent for file in FILES}
    modules = {name(folder): len([*folder.glob("*.py")]) - 1 for folder in folders}
    assert {folder: n for folder, n in modules.items() if n > MODULES_IN_A_FOLDER} == {}


def test_every_folder_of_the_package_says_what_it_holds():
    silent = [
        name(file)
        for file in FILES
        if file.name == "__init__.py" and not ast.get_docstring(ast.parse(file.read_text()))
    ]
    assert silent == []


@pytest.mark.parametrize("folder", sorted({file.parent for file in FILES}), ids=name)
@pytest.mark.long
def test_docstrings_name_the_thing_or_the_act(folder):
    found = []
    for file in folder.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node)
                if text and OPENINGS.match(text):
                    found.append(f"{name(file)}: {text.splitlines()[0]}")
    assert found == []


def test_questions_about_kinds_of_labels_are_asked_in_one_package():
    asks = re.compile(r"labels?\.ndim == |multi_label\b|label_kind\b|== \"multi\"|\"labels\" in ")
    found = [
        f"{name(file)}: {line.strip()}"
        for file in FILES
        if "targets" not in file.parts
        for line in file.read_text().splitlines()
        if asks.search(line)
    ]
    assert found == []


@pytest.mark.parametrize("folder", sorted({file.parent for file in FILES}), ids=name)
def test_text_files_have_an_encoding(folder):
    """Systems differ in what they write where nothing is said."""
    bare = re.compile(r"\.read_text\(\)|\.write_text\((?!.*encoding)(?!.*\\\\n)")
    found = [
        f"{name(file)}: {line.strip()}"
        for file in folder.glob("*.py")
        for line in file.read_text(encoding="utf-8").splitlines()
        if bare.search(line)
    ]
    assert found == []


def test_words_of_a_command_line_are_taken_apart_in_one_module():
    takes = re.compile(r"partition\(\"=\"\)|split\(\"=\"")
    found = [name(file) for file in FILES if takes.search(file.read_text())]
    # The entry point reads one word before anything else is imported.
    assert found == ["noisyml/cli.py"]

"""YAML files with a target name the arguments of its constructor, all of them and no other."""

import importlib
import inspect
import re
from pathlib import Path

import pytest
import yaml
from support import paths

from noisyml.models.backbones.base import Backbone

#: Arguments that are known only when a run is put together, or that another group brings.
GIVEN = frozenset(
    {
        *("num_classes", "num_samples", "embedding_size", "in_features", "class_names", "sizes"),
        *("labels", "parts", "optimizer", "params", "total_steps", "mean_colour", "dim", "dtype"),
        *(
            "distillation",
            "pseudo_labels",
            "student",
            "teacher",
            "text_encoder",
            "title",
            "vector_size",
            "bank",
            "objective",
            "encoder",
            "segmenter",
            "out_features",
        ),
    }
)
#: What every backbone hands on; its file shows what is worth choosing for it.
BACKBONE = set(inspect.signature(Backbone).parameters)
FILES = sorted(paths.CONF.rglob("*.yaml"))


def over(base: dict, own: dict) -> dict:
    """One mapping over another, key by key."""
    both = dict(base)
    for key, value in own.items():
        inside = isinstance(value, dict) and isinstance(base.get(key), dict)
        both[key] = over(base[key], value) if inside else value
    return both


def read(file: Path) -> dict:
    """The content of a file; by the parser in C, where there is one, as there are hundreds."""
    return yaml.load(file.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}


def merged(file: Path) -> dict:
    """A file's own keys over those of the files of its folder that it starts from."""
    own = read(file)
    content: dict = {}
    for entry in own.pop("defaults", []):
        if isinstance(entry, str) and entry != "_self_":
            content = over(content, merged(file.parent / f"{entry}.yaml"))
        elif isinstance(entry, dict):
            # Parts with files of their own.
            keys = [str(group).partition("@")[2].partition(".")[0] for group in entry]
            content = over(content, {key: {} for key in keys if key})
    return over(content, own)


def nodes(content, key=""):
    """Every mapping with a target, with the place it has in its file."""
    if isinstance(content, dict):
        if "_target_" in content:
            yield key, content
        for name, value in content.items():
            yield from nodes(value, f"{key}.{name}" if key else str(name))


CASES = {
    f"{file.relative_to(paths.CONF).with_suffix('')}{f':{key}' if key else ''}": node
    for file in FILES
    for key, node in nodes(merged(file))
    if str(node["_target_"]).startswith("noisyml.")
}


def arguments(target) -> set[str]:
    """Names that a function takes; of a class also those that it hands on to its bases."""
    taken: set[str] = set()
    for owner in inspect.getmro(target) if inspect.isclass(target) else (target,):
        if inspect.isclass(target) and "__init__" not in vars(owner):
            continue
        parameters = inspect.signature(owner).parameters.values()
        variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        taken |= {p.name for p in parameters if p.kind not in variable}
        if all(p.kind is not p.VAR_KEYWORD for p in parameters):
            break
    return taken


def test_there_are_many():
    assert len(CASES) > 150


@pytest.mark.parametrize("name", CASES)
def test_keys_are_the_arguments(name):
    node = CASES[name]
    module, _, leaf = node["_target_"].rpartition(".")
    target = getattr(importlib.import_module(module), leaf)
    taken = arguments(target)
    also = BACKBONE if name.startswith("backbone/") else set()
    if name.startswith("sampler/"):
        taken -= {"seed"}  # the run's
    keys = {key for key in node if not re.fullmatch(r"_\w+_", key)}
    assert keys <= taken | also, f"nothing takes {sorted(keys - taken)}"
    missing = taken - keys - GIVEN
    assert not missing, f"the file does not show {sorted(missing)}"


def test_no_file_sets_a_value_that_a_group_after_it_sets_again():
    lost = []
    for file in FILES:
        own = yaml.safe_load(file.read_text()) or {}
        defaults = own.get("defaults", [])
        if "_self_" not in defaults:
            continue  # Hydra takes the file itself last then
        for entry in defaults[defaults.index("_self_") + 1 :]:
            groups = [str(key).split()[-1] for key in entry] if isinstance(entry, dict) else []
            for group in groups:
                name, _, package = group.strip("/").partition("@")
                if (package or name.split("/")[0]).split(".")[0] in own:
                    lost.append(f"{file.name}: {group}")
    assert lost == []

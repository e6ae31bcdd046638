"""Check that a method keeps the contract: it learns, resumes, shares its work and is honest.

A class of any package is trained with the tiny settings of the nearest method of noisyml; further
settings may be typed. The same checks run for every method of noisyml.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import inspect
import io
import os
import pkgutil
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisyml.errors import TRUST, UserError, did_you_mean

if TYPE_CHECKING:
    from noisyml.conformance.recipes import Recipe

#: Exit status of a method that breaks a promise.
EXIT_FAILED = 1


def main(arguments: list[str]) -> int:
    """Run ``noisyml contract (CLASS | METHOD) [key=value ...]``; status 1 if a check fails."""
    parser = argparse.ArgumentParser(prog="noisyml contract", description=__doc__)
    parser.add_argument("method", help="my_package.MyMethod, or an option of the group method")
    parser.add_argument("settings", nargs="*", help="key=value on top of the tiny settings")
    parser.add_argument("--checks", metavar="NAME,...", help="these checks alone; all without it")
    parser.add_argument("--keep", metavar="FOLDER", help="keep the runs in this new folder")
    typed = parser.parse_intermixed_args(arguments)
    if not hasattr(os, "fork"):
        raise UserError(
            "noisyml contract kills and resumes copies of its own process, which this operating "
            "system cannot make (no fork); check the method on Linux, macOS or WSL."
        )
    with contextlib.ExitStack() as stack:
        if typed.keep is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        else:
            folder = Path(typed.keep).absolute()
            if folder.exists():
                raise UserError(f"--keep {typed.keep} exists already; name a new folder.")
            folder.mkdir(parents=True)
        sys.path.insert(0, str(Path.cwd()))
        os.environ["PYTHONPATH"] = os.pathsep.join(
            filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")])
        )
        if "." in typed.method:
            # Resumed and evaluated runs name the class that was typed.
            package = typed.method.partition(".")[0]
            os.environ[TRUST] = ",".join(filter(None, [os.environ.get(TRUST), package]))
        return _check(typed.method, typed.settings, folder, typed.checks)


def _check(method: str, settings: Sequence[str], folder: Path, asked: str | None) -> int:
    from rich.console import Console
    from rich.table import Table

    from noisyml.conformance.suite import CHECKS, Suite

    words = list(CHECKS) if asked is None else asked.split(",")
    for word in words:
        if word not in CHECKS:
            raise UserError(
                f"There is no check '{word}'.{did_you_mean(word, list(CHECKS))} "
                f"Choose from {', '.join(CHECKS)}."
            )
    name, recipe = _recipe(method, settings, folder / "conf" / "method")
    suite = Suite({name: recipe}, folder, _command, folder / "conf")
    table = Table("check", "result", "promise")
    failed = 0
    for word in words:
        check = CHECKS[word]
        try:
            with _silent():
                check(suite, name)
            result = "kept"
        except (AssertionError, UserError) as error:
            failed += 1
            lines = str(error).strip().splitlines() or [type(error).__name__]
            result = f"broken: {lines[0]}"
        except Exception as error:  # of the method's own code
            failed += 1
            place = traceback.extract_tb(error.__traceback__)[-1]
            result = (
                f"broken: {type(error).__name__}: {error} ({Path(place.filename).name}, "
                f"line {place.lineno})"
            )
        table.add_row(word, result, (check.__doc__ or "").strip())
    Console().print(table)
    return EXIT_FAILED if failed else 0


def _recipe(method: str, settings: Sequence[str], folder: Path) -> tuple[str, Recipe]:
    """The tiny run of a method, or of a class as a new option of the group ``method``."""
    import yaml
    from omegaconf import OmegaConf

    from noisyml.command.config import conf_dir
    from noisyml.conformance.recipes import TINY, of_methods

    known = of_methods(TINY)
    extra = OmegaConf.to_container(OmegaConf.from_dotlist(list(settings)))
    if method in known:
        return method, known[method]._replace(settings=_merged(known[method].settings, extra))
    if "." not in method:
        raise UserError(
            f"There is no method '{method}'.{did_you_mean(method, list(known))} Name one of "
            f"{', '.join(known)}, or a class: my_package.MyMethod."
        )
    cls: Any = _class(method)
    given = extra.get("method", {}) if isinstance(extra, dict) else {}
    nearest, near_class = _nearest(cls)
    text = yaml.safe_load((conf_dir() / "method" / f"{nearest}.yaml").read_bytes())
    recipe = known[nearest]
    tiny = recipe.settings.get("method", {})
    given = {**tiny, **given} if issubclass(cls, near_class) else given
    if not issubclass(cls, near_class):
        text["method"] = {}
    text["method"] = {**text["method"], "_target_": method}
    text["method"] = {**_defaults(cls), **text["method"]}
    needed = [word for word in _required(cls) if word not in {*text["method"], *given}]
    if needed:
        raise UserError(
            f"{method} needs {', '.join(needed)}: type "
            f"{' '.join(f'method.{word}=...' for word in needed)} after it."
        )
    name = cls.__name__.lower()
    folder.mkdir(parents=True)
    written = "# @package _global_\n" + yaml.safe_dump(text)
    (folder / f"{name}.yaml").write_text(written, encoding="utf-8")
    own = dict(recipe.settings)
    if not issubclass(cls, near_class):
        own.pop("method", None)
    parts = {**recipe.parts, "method": name}
    return name, recipe._replace(parts=parts, settings=_merged(own, extra))


def _class(path: str) -> type:
    """The method at an import path.

    Raises:
        UserError: there is none.
    """
    from noisyml.methods.base import Method

    try:
        found = pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{path} cannot be imported: {error}.") from error
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise UserError(f"{path} is no method: derive it from noisyml.methods.base.Method.")
    return found


def _defaults(cls: type) -> dict[str, Any]:
    """The plain values that a constructor's own settings have unless told otherwise."""
    plain = (bool, int, float, str, type(None))
    return {
        name: parameter.default
        for name, parameter in inspect.signature(cls).parameters.items()
        if isinstance(parameter.default, plain)
    }


def _required(cls: type) -> list[str]:
    """The settings without which a method cannot be made."""
    return [
        name
        for name, parameter in inspect.signature(cls).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind is parameter.KEYWORD_ONLY
        and name != "parts"
    ]


def _nearest(cls: type) -> tuple[str, type]:
    """The option whose class has most bases in common with `cls`, of equal ones its own base."""
    import yaml
    from hydra.utils import get_class

    from noisyml.command.config import conf_dir
    from noisyml.conformance.recipes import TINY

    nodes = {
        option: yaml.safe_load((conf_dir() / "method" / f"{option}.yaml").read_bytes())["method"]
        for option in TINY
    }
    # An option without a class of its own, e.g. bare, is another one with other settings.
    classes = {
        name: get_class(node["_target_"]) for name, node in nodes.items() if "_target_" in node
    }
    return max(classes.items(), key=lambda item: (_shared(cls, item[1]), issubclass(cls, item[1])))


def _shared(one: type, other: type) -> int:
    """The number of classes that two classes derive from alike."""
    return len(set(one.__mro__) & set(other.__mro__))


def _merged(settings: Any, extra: Any) -> dict[str, Any]:
    from omegaconf import OmegaConf

    merged = OmegaConf.to_container(OmegaConf.merge(dict(settings), extra))
    assert isinstance(merged, dict)
    return {str(key): value for key, value in merged.items()}


def _command(arguments: Sequence[str]) -> int:
    verb, *rest = arguments
    return int(importlib.import_module(f"noisyml.apps.{verb}").main(list(rest)))


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Silence for what the commands of the suite print."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield

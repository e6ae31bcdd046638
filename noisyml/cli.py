"""The ``noisyml`` command: finds the verb, imports it, and turns user errors into one sentence.

A verb is a module of ``noisyml/apps``, or of a folder in it, with a docstring, whose first line is
its help text, and a function ``main(arguments: list[str]) -> int``. Nothing else announces it. This
module imports only the standard library, so that ``noisyml --help`` and a misspelt verb answer at
once.
"""

from __future__ import annotations

import ast
import importlib
import os
import sys
from pathlib import Path

from noisyml import __version__
from noisyml.errors import EXIT_USER_ERROR, TRUST, UserError, did_you_mean

EXIT_INTERRUPTED = 130
#: Verbs whose libraries take seconds to load.
SLOW_TO_START = frozenset(
    {
        "train",
        "evaluate",
        "embed",
        "knn",
        "data",
        "contract",
        "clean",
        "reproduce",
        "export",
        "replay",
    }
)
#: Options that ask for a text and not for work.
_ASKING = frozenset({"-h", "--help", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i"})


def verbs() -> dict[str, str]:
    """Every verb with its one-line help, read from the sources without importing them."""
    found = {}
    for verb, path in _modules().items():
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        found[verb] = docstring.partition("\n")[0]
    return found


def _modules() -> dict[str, Path]:
    """The file of every verb."""
    apps = Path(__file__).with_name("apps")
    files = [*apps.glob("[!_]*.py"), *apps.glob("[!_]*/[!_]*.py")]
    return {path.stem: path for path in sorted(files, key=lambda path: path.stem)}


def module_name(verb: str) -> str:
    """The import path of a verb's module."""
    path = _modules()[verb].relative_to(Path(__file__).parent).with_suffix("")
    return ".".join(["noisyml", *path.parts])


def help_text() -> str:
    """The text that ``noisyml --help`` prints."""
    known = verbs()
    width = max(map(len, known))
    lines = [f"  {name:<{width}}  {text}" for name, text in known.items()]
    return "\n".join(
        [
            f"noisyml {__version__}: representations from labels that are wrong, few or missing.",
            "",
            "usage: noisyml VERB [key=value ...]",
            "",
            *lines,
            "",
            "examples:",
            "  noisyml train dataset=digits noise=symmetric noise.rate=0.3 selector=prism_avg",
            "  noisyml train -m selector=keep_all,prism_vmf noise.rate=0.3,0.5 seed=0,1,2",
            "  noisyml report outputs/train/NAME",
            "",
            'noisyml VERB --help tells more. Tab completion: eval "$(noisyml -sc install=bash)".',
        ]
    )


def run(arguments: list[str]) -> int:
    """Run one command; returns the exit status.

    Raises:
        UserError: the verb does not exist, or it raised one.
    """
    if not arguments or arguments[0] in {"-h", "--help", "help"}:
        print(help_text())
        return 0
    if arguments[0] == "--version":
        print(__version__)
        return 0
    if arguments[0] in {"-sc", "--shell-completion"}:
        from noisyml.command.completion import complete_shell

        return complete_shell(arguments, list(verbs()))
    verb, *rest = arguments
    known = list(_modules())
    if verb not in known:
        raise UserError(
            f"noisyml has no verb '{verb}'.{did_you_mean(verb, known)} It has: {', '.join(known)}."
        )
    if verb in SLOW_TO_START and sys.stderr.isatty() and not _ASKING & set(rest):
        # Whoever has typed a command sees at once that it was heard.
        print(f"noisyml {verb}: loading libraries ...", file=sys.stderr, flush=True)
    trusted, rest = _trusted(rest)
    before = os.environ.get(TRUST)
    if trusted:
        os.environ[TRUST] = ",".join(filter(None, [before, *trusted]))
    try:
        return int(importlib.import_module(module_name(verb)).main(rest))
    finally:
        if trusted:
            os.environ.pop(TRUST)
            if before is not None:
                os.environ[TRUST] = before


def _trusted(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The names in ``trust=[...]``, and all other arguments.

    Raises:
        UserError: a name that is none.
    """
    typed = [word.partition("=")[2] for word in arguments if word.startswith(("trust=", "+trust="))]
    names = [n for text in typed for name in text.strip("[] ").split(",") if (n := name.strip())]
    if wrong := [n for n in names if not all(part.isidentifier() for part in n.split("."))]:
        raise UserError(
            f"trust=[{wrong[0]}] names no Python package: write e.g. trust=[my_package]."
        )
    if typed and not names:
        raise UserError("trust= is empty: write e.g. trust=[my_package].")
    return names, [word for word in arguments if not word.startswith(("trust=", "+trust="))]


def main() -> int:
    """Entry point: a user's mistake ends in one sentence and status 2."""
    debug = os.environ.get("NOISYML_DEBUG") == "1"
    try:
        return run(sys.argv[1:])
    except UserError as error:
        if debug:
            raise
        print(f"noisyml: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("\nnoisyml: interrupted.", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe (head, less) has gone: stop quietly, as other commands do.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())

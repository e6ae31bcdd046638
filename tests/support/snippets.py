"""Snippets of the documentation, and the commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from support import paths

#: Above a snippet, with its reason: nobody can check it here.
UNCHECKED = re.compile(r"<!-- not checked: (.+?) -->\s*\Z")
_BLOCK = re.compile(
    r"^ *```(?P<language>\w*)\n(?P<fenced>(?s:.*?))^ *```$|(?P<plain>^    \S.*\n(?:^ {4,}.*\n)*)",
    flags=re.MULTILINE,
)
_SPAN = re.compile(r"`(noisyml [^`]+)`")
#: First words of lines that are commands.
COMMANDS = ("noisyml", "python", "pytest", "make", "pip", "uv", "torchrun", "srun")
#: Lines of a shell that prepare commands, and copy or fetch files.
AROUND = ("git", "cd", "export", "rsync", "eval")


@dataclass(frozen=True)
class Snippet:
    """A block of code on a page.

    Attributes:
        page: path in the repository.
        line: where it begins.
        language: as its fence says; empty for indented text and bare fences.
        text: without fence and indentation.
        unchecked: the reason why it is not checked, None where it is.
    """

    page: str
    line: int
    language: str
    text: str
    unchecked: str | None = None

    @property
    def place(self) -> str:
        """For the name of a test."""
        return f"{Path(self.page).name}:{self.line}"


def written() -> list[Path]:
    """The pages that are written."""
    return [*sorted((paths.ROOT / "docs").glob("*.md")), *map(paths.ROOT.joinpath, ROOT_PAGES)]


ROOT_PAGES = ("README.md", "CONTRIBUTING.md")


def snippets(text: str, page: str) -> Iterator[Snippet]:
    """The blocks of code on a page, in order."""
    for match in _BLOCK.finditer(text):
        plain = match["plain"]
        before = text[: match.start()]
        if plain is not None and not before.endswith("\n\n"):
            continue  # the second line of an entry of a list
        body = plain if plain is not None else match["fenced"]
        lines = [line[4:] if plain is not None else line for line in body.splitlines()]
        reason = UNCHECKED.search(before)
        yield Snippet(
            page,
            before.count("\n") + 1,
            match["language"] or "",
            "\n".join(lines),
            reason and reason[1],
        )


def spans(text: str, page: str) -> Iterator[Snippet]:
    """Commands within sentences."""
    outside = _BLOCK.sub(lambda block: "\n" * block[0].count("\n"), text)
    for match in _SPAN.finditer(outside):
        line = outside[: match.start()].count("\n") + 1
        yield Snippet(page, line, "span", " ".join(match[1].split()))


def command_lines(snippet: Snippet) -> list[list[str]]:
    """The words of each command in a snippet: variables put in, comments and prompts left out.

    Raises:
        ValueError: a line of shell that is neither a command nor known around one.
    """
    shell = snippet.language in ("bash", "console", "span")
    found, variables = [], {"NODE": "0", "SLURM_JOB_ID": "1"}
    for line in snippet.text.replace("\\\n", " ").splitlines():
        words = _put_in(_words(line), variables) if shell or _is_command(line) else []
        if not words:
            continue
        name, equals, value = words[0].partition("=")
        if equals and name.isupper():
            variables[name] = value
            words = words[1:]
        if not words:
            continue
        first = Path(words[0]).name
        while words and first in AROUND:
            words = words[words.index("&&") + 1 :] if "&&" in words else []
            first = Path(words[0]).name if words else ""
        if words and first not in COMMANDS:
            raise ValueError(f"{snippet.place}: {line}")
        if words:
            found.append([Path(words[0]).name, *words[1:]])
    return found


def _is_command(line: str) -> bool:
    """Of a block that does not say its language."""
    return re.match(rf"(\w+=\S+ )*({'|'.join(COMMANDS)}) [^:]*$", line) is not None


def _words(line: str) -> list[str]:
    # ${seed} in single quotes is Hydra's; what stands in angle brackets is to be filled in.
    return shlex.split(re.sub(r"<(\w[\w ]*)>", r"'\1'", line), comments=True)


def _put_in(words: list[str], variables: dict[str, str]) -> list[str]:
    found = []
    for word in words:
        for name, value in variables.items():
            if word == f"${name}":
                found += shlex.split(value)
                break
            word = word.replace(f"${name}", value)
        else:
            found.append(word)
    return found

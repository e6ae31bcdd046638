"""Signatures that check the values they are given.

A constructor or function says in its signature what it allows: ``Literal[...]`` for words, and a
bound such as `Share` or ``Annotated[int, Ge(2)]`` for numbers. `Checked` (for classes) and
`checked` (for functions) compare every call with it, whoever makes the call, and answer a wrong
value with one sentence. Comparing is pydantic's; the sentence is ours.

Only values are compared: numbers, words, switches, and lists and mappings of these. Tensors,
modules and other objects pass as they are. Whole numbers do where a float is asked for; nothing
else is converted, and infinite numbers pass only where `Unbounded` stands.

Example:
    >>> from noisyml.checks import Share, checked
    >>> @checked
    ... def forget(rate: Share) -> float:
    ...     return 1 - rate
    >>> forget(0.25)
    0.75
    >>> forget(25)
    Traceback (most recent call last):
        ...
    noisyml.checks.ArgumentError: rate=25 must be a number from 0 to 1.
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, fields
from typing import (
    Annotated,
    Any,
    Literal,
    Self,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

import numpy as np
from annotated_types import Ge, Gt, Interval, Le, Lt
from pydantic import AllowInfNan, TypeAdapter, ValidationError

from noisyml.errors import UserError, did_you_mean

__all__ = [
    "ArgumentError",
    "Checked",
    "Count",
    "Ge",
    "Gt",
    "Hint",
    "Interval",
    "Le",
    "Lt",
    "NonNegative",
    "OpenShare",
    "Positive",
    "Seed",
    "Share",
    "Unbounded",
    "WholeNonNegative",
    "allowed_values",
    "check_arguments",
    "check_fields",
    "checked",
]

_T = TypeVar("_T", bound=Callable[..., Any])


@dataclass(frozen=True)
class Hint:
    """Advice on a wrong value, at the end of its sentence: ``Hint("0 switches it off")``."""

    text: str


#: A number that may be infinite; others must be finite.
Unbounded = Annotated[float, AllowInfNan(True)]
#: A fraction of 1.
Share = Annotated[float, Interval(ge=0, le=1)]
#: A fraction of 1 below 1: from [0, 1).
OpenShare = Annotated[float, Interval(ge=0, lt=1)]
#: A number above 0.
Positive = Annotated[float, Gt(0)]
#: A number from 0 up.
NonNegative = Annotated[float, Ge(0)]
#: A whole number from 1 up.
Count = Annotated[int, Ge(1)]
#: A whole number from 0 up.
WholeNonNegative = Annotated[int, Ge(0)]
#: A seed that every generator takes.
Seed = Annotated[int, Interval(ge=0, lt=2**32)]


class ArgumentError(UserError):
    """A value that a signature does not allow.

    Args:
        name: of the argument, perhaps with the place inside it (``hidden_features[0]``).
        value: what was given.
        problem: the rest of the sentence, without its full stop.
        hint: a sentence of its own on what to do, or nothing.
    """

    def __init__(self, name: str, value: Any, problem: str, hint: str = "") -> None:
        self.name, self.value, self.problem, self.hint = name, value, problem, hint
        super().__init__(f"{name}={_shown(value)} {problem}.{hint}")

    def below(self, key: str) -> Self:
        """The same mistake, its argument called by the full name it has in a configuration."""
        name = f"{key}.{self.name}" if key else self.name
        return type(self)(name, self.value, self.problem, self.hint)


def checked(function: _T) -> _T:
    """Compare the arguments of every call with the signature.

    Args:
        function: a function, or a class whose constructor is meant.

    Raises:
        ArgumentError: by the function, for a value that its signature does not allow.
    """
    if isinstance(function, type):
        function.__init__ = _wrapped(function.__init__)  # type: ignore[misc]
        return function
    return _wrapped(function)  # type: ignore[return-value]


class Checked:
    """Base of classes whose constructors, and those of their subclasses, check their arguments."""

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        if "__init__" in cls.__dict__:
            cls.__init__ = _wrapped(cls.__init__)  # type: ignore[method-assign]


def check_arguments(function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Compare values with a signature without calling anything.

    Args:
        function: a function or class.
        arguments: values by argument name; names that it does not have are passed over.

    Raises:
        ArgumentError: a value that the signature does not allow.
    """
    target = function.__init__ if isinstance(function, type) else function  # type: ignore[misc]
    rules = _rules(inspect.unwrap(cast(Callable[..., Any], target)))
    for name, value in arguments.items():
        if name in rules:
            rules[name].check(name, value)


def allows(function: Callable[..., Any], name: str, value: Any) -> bool:
    """True where the signature of a function or class says that it takes a value.

    Args:
        function: a function or class.
        name: one of its arguments; False for others, and for those without an annotation to check.
        value: the value.
    """
    try:
        check_arguments(function, {name: value})
    except ArgumentError:
        return False
    target = function.__init__ if isinstance(function, type) else function  # type: ignore[misc]
    return name in _rules(inspect.unwrap(cast(Callable[..., Any], target)))


def allowed_values(function: Callable[..., Any], name: str) -> str:
    """Values that a signature allows for an argument, in words; empty where it allows any.

    Args:
        function: a function or class.
        name: one of its arguments, or another word.

    Example:
        >>> def draw(rate: Share) -> None: ...
        >>> allowed_values(draw, "rate")
        'a number from 0 to 1'
    """
    target = function.__init__ if isinstance(function, type) else function  # type: ignore[misc]
    rules = _rules(inspect.unwrap(cast(Callable[..., Any], target)))
    return _described(rules[name].annotation) if name in rules else ""


def check_fields(instance: Any) -> None:
    """Compare the fields of a dataclass instance with their annotations.

    Raises:
        ArgumentError: a value that its annotation does not allow.
    """
    rules = _field_rules(cast(Any, type(instance)))
    for name, rule in rules.items():
        rule.check(name, getattr(instance, name))


def _wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        rules = _rules(function)
        if rules:
            try:
                given = signature.bind(*args, **kwargs).arguments
            except TypeError:
                return function(*args, **kwargs)  # Python says what is missing or too much
            for name, value in given.items():
                if name in rules:
                    rules[name].check(name, value)
        return function(*args, **kwargs)

    return call


@dataclass(frozen=True)
class _Rule:
    """Values that an annotation allows."""

    annotation: Any
    adapter: TypeAdapter[Any]

    def check(self, name: str, value: Any) -> None:
        if not _fits(self.adapter, value):
            raise _mistake(name, value, self.annotation)


def _rule(annotation: Any) -> _Rule:
    return _Rule(annotation, TypeAdapter(_strictly(annotation)))


def _fits(adapter: TypeAdapter[Any], value: Any) -> bool:
    try:
        adapter.validate_python(_plain(value), strict=True)
    except ValidationError:
        return False
    return True


def _plain(value: Any) -> Any:
    """A value with NumPy's numbers as Python's and every collection as a tuple."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple | range | Set):
        return tuple(map(_plain, value))
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value


@functools.cache
def _rules(function: Callable[..., Any]) -> dict[str, _Rule]:
    module = sys.modules.get(function.__module__)
    space = {} if module is None else vars(module)
    found = {}
    for name, annotation in function.__annotations__.items():
        resolved = _resolved(annotation, space)
        if name != "return" and resolved is not None and _is_value(resolved):
            found[name] = _rule(resolved)
    return found


@functools.cache
def _field_rules(cls: type) -> dict[str, _Rule]:
    hints = get_type_hints(cls, include_extras=True)
    own = [item.name for item in fields(cls) if item.init]
    return {name: _rule(hints[name]) for name in own if _is_value(hints[name])}


def _resolved(annotation: Any, space: Mapping[str, Any]) -> Any:
    """An annotation as an object; None for one that names what only type checkers import."""
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, dict(space))  # a module's own source
    except NameError:
        return None


_SCALARS: tuple[Any, ...] = (int, float, bool, str, None, type(None))
_LISTS = (Sequence, Collection, Iterable, Set, list, tuple, set, frozenset)
_MAPPINGS = (Mapping, dict)


def _is_value(annotation: Any) -> bool:
    """True for annotations made of numbers, words, switches and collections of them."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _is_value(parts[0])
    if origin in (Union, types.UnionType, *_LISTS):
        return all(part is Ellipsis or _is_value(part) for part in parts)
    if origin in _MAPPINGS:
        return all(part is Any or _is_value(part) for part in parts)
    return origin is Literal or annotation in _SCALARS


def _strictly(annotation: Any) -> Any:
    """The annotation with finite numbers, and tuples for whatever collection it allows."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if annotation is float:
        return Annotated[float, AllowInfNan(False)]
    if origin is Annotated:
        inner = parts[0] if any(isinstance(e, AllowInfNan) for e in parts) else _strictly(parts[0])
        extras = [extra for extra in parts[1:] if not isinstance(extra, Hint)]
        return Annotated[(inner, *extras)] if extras else inner
    if origin in (Union, types.UnionType):
        return Union[tuple(map(_strictly, parts))]  # noqa: UP007
    if origin is tuple and Ellipsis not in parts:
        return tuple[tuple(map(_strictly, parts))]  # type: ignore[misc]
    if origin in _LISTS:
        return tuple[_strictly(parts[0]), ...]  # type: ignore[misc]
    if origin in _MAPPINGS:
        key, value = (part if part is Any else _strictly(part) for part in parts)
        return dict[key, value]  # type: ignore[valid-type]
    return annotation


# -- sentences ---------------------------------------------------------------------------------


def _mistake(name: str, value: Any, annotation: Any, hint: str = "") -> ArgumentError:
    """The sentence for a value that does not fit, about the first of its entries that does not."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        own = "".join(f" {extra.text}" for extra in parts[1:] if isinstance(extra, Hint))
        if get_origin(parts[0]) is not None:
            return _mistake(name, value, parts[0], own or hint)
        hint = own or hint
    if origin in (Union, types.UnionType):
        fitting = _MAPPINGS if isinstance(value, Mapping) else _LISTS
        listed = [p for p in parts if get_origin(p) in fitting]
        if listed and isinstance(value, list | tuple | Mapping):
            return _mistake(name, value, listed[0], hint)
    if (
        origin in _LISTS
        and isinstance(value, list | tuple)
        and not (origin is tuple and Ellipsis not in parts and len(parts) != len(value))
    ):
        kinds = [parts[0]] * len(value) if Ellipsis in parts or len(parts) == 1 else parts
        for at, (item, kind) in enumerate(zip(value, kinds, strict=True)):
            if not _fits(_rule(kind).adapter, item):
                return _mistake(f"{name}[{at}]", item, kind, hint)
    if origin in _MAPPINGS and isinstance(value, Mapping):
        for key, item in value.items():
            if parts[1] is not Any and not _fits(_rule(parts[1]).adapter, item):
                return _mistake(f"{name}.{key}", item, parts[1], hint)
    if isinstance(value, str):
        hint = did_you_mean(value, _words(annotation)) + hint
    elif str in (annotation, *parts) and (value is None or isinstance(value, list | tuple)):
        # The shell takes one pair of quotes away.
        hint += " A text that looks like this stands in quotes within quotes: '\"[a]\"'."
    return ArgumentError(name, value, f"must be {_described(annotation)}", hint)


def _words(annotation: Any) -> list[str]:
    """The words that an annotation allows."""
    if get_origin(annotation) is Literal:
        return [word for word in get_args(annotation) if isinstance(word, str)]
    parts = get_args(annotation)
    return [word for part in parts if not isinstance(part, str) for word in _words(part)]


def _described(annotation: Any, plural: bool = False) -> str:
    """Values that an annotation allows, in words."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        kind, range_ = _described(parts[0], plural), _range(parts[1:])
        return f"{kind} {range_}" if range_ else kind
    if origin is Literal:
        return _one_of([_shown(word) for word in parts])
    if origin in (Union, types.UnionType):
        return _one_of([_described(part, plural) for part in parts])
    if origin is tuple and Ellipsis not in parts:
        return f"a list of {len(parts)}: {', '.join(map(_described, parts))}"
    if origin in _LISTS:
        return f"a list of {_described(parts[0], plural=True)}"
    if origin in _MAPPINGS:
        return "a mapping"
    one, several = {
        int: ("a whole number", "whole numbers"),
        float: ("a number", "numbers"),
        bool: ("true or false", "true or false"),
        str: ("a word", "words"),
    }.get(annotation, ("null", "null"))
    return several if plural else one


def _range(extras: Iterable[Any]) -> str:
    """The bounds among the extras of an annotation, in words."""
    low = high = None
    closed_low = closed_high = True
    for extra in extras:
        for name in ("ge", "gt"):
            if (bound := getattr(extra, name, None)) is not None:
                low, closed_low = bound, name == "ge"
        for name in ("le", "lt"):
            if (bound := getattr(extra, name, None)) is not None:
                high, closed_high = bound, name == "le"
    if low is None and high is None:
        return ""
    below = f"{'' if closed_high else 'below '}{high}"
    if low is None:
        return f"of at most {high}" if closed_high else below
    if high is None:
        return f"of at least {low}" if closed_low else f"above {low}"
    if closed_low:
        return f"from {low} to {below}"
    return f"above {low} and {'at most ' if closed_high else ''}{below}"


def _one_of(options: Sequence[str]) -> str:
    *rest, last = dict.fromkeys(options)
    return f"{', '.join(rest)} or {last}" if rest else last


def _shown(value: Any) -> str:
    """A value as one would type it on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_shown, value))}]"
    return str(value)

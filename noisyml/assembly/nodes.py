"""Nodes of a configuration to objects: one way for every part of a run."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf

from noisyml.checks import ArgumentError, check_arguments
from noisyml.errors import UserError

#: Keys of a node that are no arguments.
_DIRECTIVES = frozenset({"_target_", "_partial_", "_convert_", "_recursive_"})


def build(node: DictConfig, **available: Any) -> Any:
    """The object that a node describes, its arguments built first where they are nodes.

    Config keys equal constructor arguments; what a constructor needs beyond them (the number of
    classes, say) is known only at run time. A node with ``_partial_: true`` becomes a function that
    takes the arguments still missing. Lists and mappings arrive as plain Python ones.

    Args:
        node: with ``_target_``, the path of a class or function.
        **available: further arguments by name, of the target and of nodes among its arguments;
            those a target does not take are left out.

    Raises:
        ArgumentError: a value that the target's signature does not allow, by its full key.
        UserError: what else the target refuses.
    """
    target = _target(node)
    takes = inspect.signature(target).parameters if available else {}
    extra = {name: value for name, value in available.items() if name in takes}
    own = {str(key): _value(node, key, available) for key in node if key not in _DIRECTIVES}
    key = _key(node)
    if node.get("_partial_", False):
        # What is wrong with the settings is said now, not when the function is called at last.
        _call(check_arguments, key, target, own)
        return functools.partial(_call, target, key, **(own | extra))
    return _call(target, key, **(own | extra))


def ask(function: Callable[..., Any], node: DictConfig, *args: Any) -> Any:
    """The answer of a function of a node's class about its settings, which are checked first.

    Args:
        function: takes `args` and then the settings, see `settings`.
        node: of the class.
        *args: before the settings.

    Raises:
        ArgumentError: a setting that the signature of the class does not allow.
        UserError: what else is wrong with them.
    """
    _check(node)
    return _call(function, _key(node), *args, settings(node))


def build_optional(node: DictConfig | None, **available: Any) -> Any:
    """`build`, or None where there is nothing to build."""
    return None if node is None else build(node, **available)


def nodes_of(group: DictConfig | None) -> dict[str, DictConfig]:
    """The nodes of a mapping by name, without those that are null."""
    if group is not None and not isinstance(group, DictConfig):
        raise UserError(f"{group} stands where parts of the run belong, a mapping by name.")
    return {str(name): node for name, node in (group or {}).items() if node is not None}


def declared(node: DictConfig) -> type[Any]:
    """The class of a node, whose declarations can be read before anything is built.

    Raises:
        UserError: it names none.
    """
    found = _target(node)
    if not isinstance(found, type):
        raise UserError(f"{_key(node)}._target_={node['_target_']} is no class: name one.")
    return found


def settings(node: DictConfig) -> dict[str, Any]:
    """The arguments of a node as plain Python values, nodes among them not built."""
    if not isinstance(node, DictConfig):
        raise UserError(f"{node} stands where a part of the run belongs, a mapping of settings.")
    plain = OmegaConf.to_container(node, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items() if key not in _DIRECTIVES}


def _check(node: DictConfig) -> None:
    """Compare the settings of a node, and of the nodes inside it, with their signatures."""
    inside = {str(key): node[key] for key in node if _has_node(node[key])}
    plain = {key: value for key, value in settings(node).items() if key not in inside}
    if "_target_" in node:
        _call(check_arguments, _key(node), _target(node), plain)
    for value in inside.values():
        for part in value if isinstance(value, ListConfig) else [value]:
            if isinstance(part, DictConfig):
                _check(part)


def _has_node(value: Any) -> bool:
    """True for a node, or for a list or mapping with one."""
    if isinstance(value, DictConfig):
        return "_target_" in value or any(_has_node(value[key]) for key in value)
    return isinstance(value, ListConfig) and any(_has_node(part) for part in value)


def _value(parent: DictConfig | ListConfig, key: Any, available: Mapping[str, Any]) -> Any:
    value = parent[key]
    if isinstance(value, DictConfig):
        if "_target_" in value:
            return build(value, **available)
        return {name: _value(value, name, available) for name in value}
    if isinstance(value, ListConfig):
        return [_value(value, i, available) for i in range(len(value))]
    return value


def _call(target: Callable[..., Any], key: str, /, *args: Any, **arguments: Any) -> Any:
    try:
        return target(*args, **arguments)
    except ArgumentError as error:
        # An argument that is a node of its own has been named in full already.
        if error.name.startswith(f"{key}."):
            raise
        raise error.below(key) from error
    except UserError:
        raise
    except Exception as error:
        name = getattr(target, "__name__", str(target))
        raise UserError(_refusal(name, key, error)) from error


def _refusal(name: str, key: str, error: Exception) -> str:
    """The sentence for an error of a class or function that was called with settings."""
    first = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
    if isinstance(error, TypeError):
        unknown = re.search(r"unexpected keyword argument '(\w+)'", first)
        if unknown:
            return (
                f"{name} has no setting '{unknown[1]}': remove {key}.{unknown[1]} from the command."
            )
        missing = re.search(r"missing \d+ required .*arguments?: (.+)", first)
        if missing:
            return f"{name} needs {missing[1]}: add {key}.KEY=VALUE to the command."
    # Errors of other types say what went wrong in code, not what is wrong with a value.
    expected = isinstance(error, TypeError | ValueError | OSError)
    told = first if expected else f"{type(error).__name__}: {first}"
    where = "" if expected else "; NOISYML_DEBUG=1 shows where"
    return f"{name} cannot be made of its settings ({key}: {told}){where}."


def _key(node: DictConfig) -> str:
    return str(node._get_full_key(None))


def _target(node: DictConfig) -> Any:
    """The class or function that a node names.

    Raises:
        UserError: it names none, or one that cannot be imported.
    """
    if not isinstance(node, DictConfig):
        raise UserError(
            f"{node} stands where a part of the run belongs, a mapping with a _target_: choose an "
            f"option of its group (`noisyml list`)."
        )
    key = _key(node)
    path = node.get("_target_")
    if not isinstance(path, str) or not path:
        raise UserError(
            f"{key} names no class or function: give it a _target_, or choose an option of its "
            f"group (`noisyml list`)."
        )
    try:
        found = get_object(path)
    except Exception as error:
        cause = error.__cause__ or error
        reason = str(cause).strip().partition("\n")[0].rstrip(".") or type(cause).__name__
        raise UserError(f"{key}._target_={path} cannot be imported ({reason}).") from error
    if not callable(found):
        raise UserError(f"{key}._target_={path} is no class or function: name one.")
    return found

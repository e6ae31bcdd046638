"""Nodes of a configuration to objects: one way for every part of a run."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_class, get_object
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
    target = get_object(str(node["_target_"]))
    takes = inspect.signature(target).parameters if available else {}
    extra = {name: value for name, value in available.items() if name in takes}
    own = {str(key): _value(node, key, available) for key in node if key not in _DIRECTIVES}
    key = str(node._get_full_key(None))
    if node.get("_partial_", False):
        # What is wrong with the settings is said now, not when the function is called at last.
        _call(check_arguments, key, target, own)
        return functools.partial(_call, target, key, **(own | extra))
    return _call(target, key, **(own | extra))


def build_optional(node: DictConfig | None, **available: Any) -> Any:
    """`build`, or None where there is nothing to build."""
    return None if node is None else build(node, **available)


def nodes_of(group: DictConfig | None) -> dict[str, DictConfig]:
    """The nodes of a mapping by name, without those that are null."""
    return {str(name): node for name, node in (group or {}).items() if node is not None}


def declared(node: DictConfig) -> type[Any]:
    """The class of a node, whose declarations can be read before anything is built."""
    return get_class(str(node["_target_"]))


def settings(node: DictConfig) -> dict[str, Any]:
    """The arguments of a node as plain Python values, nodes among them not built."""
    plain = OmegaConf.to_container(node, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items() if key not in _DIRECTIVES}


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
        name = f"{target.__module__}.{getattr(target, '__qualname__', target)}"
        raise InstantiationException(
            f"Error in call to target '{name}':\n{error!r}\nfull_key: {key}"
        ) from error

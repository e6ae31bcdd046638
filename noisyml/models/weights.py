"""Weight files: fetched or found, checked against their checksum, never unpickled."""

from __future__ import annotations

import hashlib
import logging
import pickle
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from noisyml.errors import UserError
from noisyml.storage.pickles import read_plain

log = logging.getLogger(__name__)

#: The convention of published files: ``<architecture>-<first digits of the SHA-256>.pth``.
_NAMED = re.compile(
    r"(?:resnet\d+|wide_resnet\d+_2|resnext\d+_\d+x\d+d|googlenet|bn_inception)"
    r"-([0-9a-f]{8,64})\.pth"
)


def fetch_weights(url: str, purpose: str) -> Path:
    """The local copy of a published weight file, downloaded once into the cache of `torch.hub`.

    Args:
        url: ends in the file's name, which carries the first digits of its SHA-256: they are
            compared.
        purpose: what the weights are, for messages.

    Raises:
        UserError: it is not there and cannot be fetched; the sentence says where to put it.
        ValueError: the name carries no checksum.
    """
    name = url.rpartition("/")[2]
    named = _NAMED.fullmatch(name)
    if named is None:
        raise ValueError(f"{name} does not carry a checksum in the way of published files")
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path), named[1], progress=True)
    except (OSError, RuntimeError) as error:
        # RuntimeError: the digest of what arrived is another one.
        raise UserError(
            f"The {purpose} could not be fetched ({error}); download {url} elsewhere, and put it "
            f"at {path} or set backbone.weights to its path."
        ) from error
    return path


def check_sha256(path: Path, sha256: str) -> None:
    """Compare a file with its published SHA-256, or the first digits of it.

    Args:
        path: the file.
        sha256: at least 8 hexadecimal digits.

    Raises:
        UserError: `sha256` is no such text, or the file is another one.
    """
    if not re.fullmatch(r"[0-9a-fA-F]{8,64}", sha256):
        raise UserError(
            f"backbone.sha256={sha256} is not a checksum: give 8 to 64 hexadecimal digits, in "
            "quotation marks if they are all decimal."
        )
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(sha256.lower()):
        raise UserError(
            f"The weight file {path} has the SHA-256 {found}, which does not begin with "
            f"{sha256.lower()}: it is damaged or another one; fetch it again."
        )


#: Names under which training scripts keep the state dict of their network.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network")


def read_weights(path: str | Path, sha256: str | None = None) -> dict[str, Tensor]:
    """The tensors of a weight file by name.

    Args:
        path: a file written by `torch.save`: a state dict, or a dict that has one under
            ``state_dict``, ``model`` or another name; or a pickle (``.pkl``) of NumPy arrays by
            name, as Caffe's weights were converted to.
        sha256: its checksum or the first 8 digits or more of it; None: what the file's name says,
            if it is that of a published file (``resnet50-19c8e357.pth``).

    Raises:
        UserError: no such file, another checksum, or anything in it but tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no weight file {path}; set backbone.weights to an existing one.")
    named = _NAMED.fullmatch(path.name)
    expected = sha256 or (named and named[1])
    if expected:
        check_sha256(path, expected)
    try:
        if path.suffix == ".pkl":
            loaded = _read_arrays(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, TypeError) as error:
        raise UserError(
            f"The weight file {path} is damaged or holds more than tensors, which is never "
            "unpickled: save its state dict alone with torch.save(model.state_dict(), ...)."
        ) from error
    return _unwrapped(loaded, path)


def _unwrapped(loaded: Any, path: Path) -> dict[str, Tensor]:
    """The named tensors in a checkpoint, wherever training scripts put them."""
    if loaded == {} or _named_tensors(loaded):
        return dict(loaded)
    inner = loaded if isinstance(loaded, dict) else {}
    found = {name: value for name, value in inner.items() if _named_tensors(value)}
    usual = [name for name in _WRAPPERS if name in found]
    if not usual and len(found) > 1:
        raise UserError(
            f"The weight file {path} holds several networks: {', '.join(map(str, found))}; save "
            "the state dict of one of them alone."
        )
    if not found:
        raise UserError(f"The weight file {path} holds no state dict: named tensors are needed.")
    state: dict[str, Tensor] = found[usual[0]] if usual else next(iter(found.values()))
    return state


def _named_tensors(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(
            isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items()
        )
    )


def _read_arrays(path: Path) -> Any:
    # Python 2 wrote strings as bytes, arrays' contents among them.
    advice = "it must be named NumPy arrays and nothing else"
    loaded = read_plain(path, encoding="latin-1", advice=advice)
    if not isinstance(loaded, dict):
        return loaded
    return {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in loaded.items()}


def _without_prefix(
    state: dict[str, Tensor], needed: Collection[str], source: str
) -> dict[str, Tensor]:
    """The tensors named as the network names them, where all names have one thing before them.

    ``module.`` is written by data parallel training, ``backbone.``, ``encoder_q.`` and the like by
    frameworks.
    """
    if not needed or any(name in state for name in needed):
        return state
    one = min(needed)
    prefixes = [name.removesuffix(one) for name in state if name.endswith(f".{one}")]
    whole = [p for p in prefixes if all(p + name in state for name in needed)]
    if len(whole) > 1:
        raise UserError(
            f"The weight file {source} holds the network {len(whole)} times, with names that begin "
            f"with {', '.join(whole)}; save one of them alone."
        )
    if not whole:
        return state
    log.info("%s: names begin with %s, which is left out", source, whole[0])
    return {n.removeprefix(whole[0]): t for n, t in state.items() if n.startswith(whole[0])}


def load_into(
    body: nn.Module, state: dict[str, Tensor], source: str, fresh: Collection[str] = ()
) -> None:
    """Load named tensors, which may bring a classifier that `body` no longer has.

    Args:
        body: the network.
        state: tensors by name.
        source: where they come from, for messages.
        fresh: names that need not be in `state`: parameters added to the published network.

    Raises:
        UserError: a tensor is missing or of another shape.
    """
    wanted = body.state_dict()
    # Files from before PyTorch 0.4.1 do not count the batches that batch norm has seen.
    needed = {n for n in wanted if n not in fresh and not n.endswith("num_batches_tracked")}
    state = _without_prefix(state, needed, source)
    missing = sorted(needed - set(state))
    if missing:
        raise UserError(
            f"The weight file {source} lacks {len(missing)} of {len(needed)} tensors "
            f"(first: {missing[0]}); it belongs to another architecture."
        )
    given = {name: state[name] for name in wanted if name in state}
    for name, tensor in given.items():
        if tensor.shape != wanted[name].shape:
            raise UserError(
                f"The weight file {source} has {name} of shape {list(tensor.shape)} where "
                f"{list(wanted[name].shape)} is wanted; it belongs to another architecture."
            )
    body.load_state_dict(wanted | given)

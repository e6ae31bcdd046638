"""A small transformer over tokens learnt from the captions, for data with no download."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from noisyml.checks import Checked, Count, Ge, OpenShare, checked
from noisyml.errors import UserError
from noisyml.models.text.encoder import Projection, TextBody, TextEncoder, Tokenizer

PAD, UNKNOWN = "[PAD]", "[UNK]"


def _library() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise UserError(
            "Captions need the library tokenizers: pip install 'noisyml[text]'."
        ) from error
    return tokenizers


class CaptionTokenizer(Tokenizer):
    """Byte-pair encoding of lower-cased words, learnt from captions (library ``tokenizers``).

    Args:
        vocab_size: tokens at most.
        max_tokens: of a caption; what is beyond is cut off.

    Raises:
        UserError: the library is not installed.
    """

    def __init__(self, vocab_size: int, max_tokens: int) -> None:
        _library()
        # Its threads do not survive a fork, and captions are short.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self.vocab_size, self.max_tokens = vocab_size, max_tokens
        self._tokenizer: Any = None

    @property
    def ready(self) -> bool:
        """True once it has learnt."""
        return self._tokenizer is not None

    def learn(self, texts: Sequence[str]) -> None:
        """Learn the most frequent pieces; the order of the texts does not matter."""
        lib = _library()
        learner = lib.Tokenizer(lib.models.BPE(unk_token=UNKNOWN))
        learner.normalizer = lib.normalizers.Sequence(
            [lib.normalizers.NFKC(), lib.normalizers.Lowercase()]
        )
        learner.pre_tokenizer = lib.pre_tokenizers.Whitespace()
        trainer = lib.trainers.BpeTrainer(
            vocab_size=self.vocab_size, special_tokens=[PAD, UNKNOWN], show_progress=False
        )
        learner.train_from_iterator(sorted(texts), trainer)
        self.restore(learner.to_str())

    def state(self) -> str:
        """The learnt pieces as JSON."""
        return "" if self._tokenizer is None else str(self._tokenizer.to_str())

    def restore(self, state: str) -> None:
        """Take the learnt pieces from JSON."""
        self._tokenizer = _library().Tokenizer.from_str(state)
        self._tokenizer.enable_truncation(self.max_tokens)
        self._tokenizer.enable_padding(pad_id=0, pad_token=PAD)

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Numbers [b, L] int64 and marks [b, L]; see `Tokenizer`."""
        if self._tokenizer is None:
            raise ValueError("the tokenizer has learnt nothing yet")
        if not len(texts):
            nothing = torch.zeros(0, 1, dtype=torch.int64)
            return nothing, nothing
        encoded = self._tokenizer.encode_batch(list(texts))
        return (
            torch.tensor([text.ids for text in encoded], dtype=torch.int64),
            torch.tensor([text.attention_mask for text in encoded], dtype=torch.int64),
        )


class TokenTransformer(Checked, TextBody):
    """A transformer encoder with learnt positions, layer norm first.

    Args:
        vocab_size: tokens.
        width: F.
        layers: blocks.
        heads: of attention; must divide `width`.
        max_tokens: positions.
        dropout: share of units left out in training.

    Raises:
        UserError: heads that do not divide the width.
    """

    def __init__(
        self,
        vocab_size: Count,
        width: Count,
        layers: Count,
        heads: Count,
        max_tokens: Count,
        dropout: OpenShare = 0.0,
    ) -> None:
        super().__init__()
        if width % heads:
            raise UserError(
                f"method.text_encoder.width={width} cannot be divided among "
                f"method.text_encoder.heads={heads}: choose a multiple."
            )
        self.width = width
        self.tokens = nn.Embedding(vocab_size, width)
        self.positions = nn.Parameter(torch.empty(max_tokens, width))
        block = nn.TransformerEncoderLayer(
            width,
            heads,
            dim_feedforward=4 * width,
            dropout=dropout,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.blocks = nn.TransformerEncoder(
            block, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False
        )
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.01)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """States [b, L, F] of tokens [b, L]."""
        states = self.tokens(tokens) + self.positions[: tokens.shape[1]]
        encoded: Tensor = self.blocks(states, src_key_padding_mask=mask == 0)
        return encoded


#: The padding and the unknown token, and something to say.
Vocabulary = Annotated[int, Ge(3)]


@checked
def caption_transformer(
    embedding_size: Count,
    *,
    vocab_size: Vocabulary = 1000,
    width: Count = 128,
    layers: Count = 2,
    heads: Count = 4,
    max_tokens: Count = 60,
    dropout: OpenShare = 0.0,
    projection: Projection = "linear",
) -> TextEncoder:
    """A transformer of random weights whose tokens are learnt from the captions of training.

    Args:
        embedding_size: D.
        vocab_size: tokens at most.
        width: of the states.
        layers: blocks.
        heads: of attention.
        max_tokens: of a caption; what is beyond is cut off.
        dropout: share of units left out in training; not the same on several processes as on one.
        projection: ``linear``, or ``auto``: none where the width is D already.
    """
    body = TokenTransformer(vocab_size, width, layers, heads, max_tokens, dropout)
    tokenizer = CaptionTokenizer(vocab_size, max_tokens)
    return TextEncoder(body, tokenizer, embedding_size, projection=projection)

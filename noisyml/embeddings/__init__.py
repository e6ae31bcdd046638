"""Embeddings on disk: storing, extracting and searching them."""

from noisyml.embeddings.store import EmbeddingStore as EmbeddingStore

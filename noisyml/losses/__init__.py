"""Losses on embeddings: a pure function and the module around it."""

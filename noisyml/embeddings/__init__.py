"""Embeddings on disk: storing, extracting and searching them."""

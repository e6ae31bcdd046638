"""Metrics: retrieval, clustering, label trust. A library without Lightning and Hydra."""

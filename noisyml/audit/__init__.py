"""Audit of labels: the ones that a run did not trust."""

"""Losses without labels, on pairs or views of the same sample."""

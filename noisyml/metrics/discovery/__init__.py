"""Scores of discovered classes: clusters matched to classes, old and new ones apart."""

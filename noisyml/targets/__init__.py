"""Kinds of labels: everything that depends on what a label is."""

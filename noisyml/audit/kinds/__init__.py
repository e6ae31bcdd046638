"""Kinds of labels that are audited: one per row, several per row, a caption."""

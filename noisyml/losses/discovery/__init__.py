"""Losses of category discovery: contrast of two views, affinity to a memory, self-distillation."""

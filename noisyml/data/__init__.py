"""Data sets, transforms, samplers and the data module."""

"""Photographs with a class for every pixel."""

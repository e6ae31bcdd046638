"""Losses of class scores of pixels, and the pseudo-labels that a model gives them."""

"""Losses and targets between the images and the captions of a batch."""

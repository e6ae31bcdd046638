"""Backbones, heads and the encoder they make."""

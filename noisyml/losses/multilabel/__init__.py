"""Losses on several labels per sample."""

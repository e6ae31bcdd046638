"""Approximate search: indexes, their rows, and what they find."""

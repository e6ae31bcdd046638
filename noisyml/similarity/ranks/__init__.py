"""Ranks of the positives of each query, without sorting the gallery."""

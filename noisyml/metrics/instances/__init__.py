"""Retrieval of objects by lists of judged images: scores, ways to rank, and their evaluator."""

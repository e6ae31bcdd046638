"""Observers of a run: checkpoints, history, the selector's judgements, progress."""

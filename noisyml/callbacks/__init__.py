"""What watches a run: checkpoints, history, the selector's judgements, progress."""

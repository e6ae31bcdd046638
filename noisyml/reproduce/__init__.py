"""Published tables and claims: their figures, the runs that repeat them, and both side by side."""

"""Methods for several labels per sample."""

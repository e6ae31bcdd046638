"""Classification sets of small images."""

"""Scores of labels: each a pure function of features, neighbours, probabilities or histories."""

"""Methods whose inputs are vectors: dimensionality reduction without labels."""

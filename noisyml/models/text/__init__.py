"""Text encoders: captions to features and embeddings."""

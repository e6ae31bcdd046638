"""A user's own images: a folder or a table."""

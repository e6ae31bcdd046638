"""Which samples to trust."""

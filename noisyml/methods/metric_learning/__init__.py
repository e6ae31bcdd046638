"""Methods that learn an embedding."""

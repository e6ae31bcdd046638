"""Methods that classify."""

"""Injectors of label noise, one module per kind."""

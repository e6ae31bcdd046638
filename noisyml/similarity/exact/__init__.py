"""Exact search: fast filters, their bounds, and final scores."""

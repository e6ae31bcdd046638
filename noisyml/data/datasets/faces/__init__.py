"""Facial expressions."""

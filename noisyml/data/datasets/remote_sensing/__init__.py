"""Scenes seen from the air and from orbit."""

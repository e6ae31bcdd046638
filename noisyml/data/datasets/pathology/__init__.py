"""Patches of microscope slides."""

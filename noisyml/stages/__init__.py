"""Runs made of stages."""

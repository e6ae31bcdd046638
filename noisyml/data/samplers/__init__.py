"""Batches of an epoch, planned ahead so that a run can be resumed at any step."""

"""Retrieval benchmarks: classes of the test that training does not have."""

"""Loops in C, in a form for each vector unit, and the library that they are compiled to."""

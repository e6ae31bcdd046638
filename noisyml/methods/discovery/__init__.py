"""Category discovery: old classes partly labelled, new ones not at all."""

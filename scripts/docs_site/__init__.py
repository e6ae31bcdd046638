"""The documentation site: written pages, and pages made of configuration and docstrings."""

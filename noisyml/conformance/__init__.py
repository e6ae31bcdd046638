"""The contract that every method keeps, as checks of whole runs with tiny settings."""

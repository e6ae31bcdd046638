"""The performance core: memory banks and what search is built of."""

"""From what was typed to a composed configuration."""

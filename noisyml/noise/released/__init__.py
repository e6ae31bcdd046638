"""Noise as published code drew it, bit for bit, and published noisy lists."""

"""Selectors: judgement of samples, labels or pairs as trusted or not."""

"""noisyml: representation learning when labels are wrong, few or missing."""

__version__ = "0.1.0"

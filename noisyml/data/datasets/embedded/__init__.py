"""Sets that need no download: drawn or composed on the spot, or inside a dependency."""

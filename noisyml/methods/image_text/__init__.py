"""Methods that learn from images and their captions."""

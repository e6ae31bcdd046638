"""Images and captions from the web, in the formats they are published in."""

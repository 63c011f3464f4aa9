"""Chat platforms: translate in, render out."""

"""Settings, texts and personas."""

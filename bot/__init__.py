"""The core: words, ports, store, conversations, commands and delivery."""

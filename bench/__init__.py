"""Measures what the bot costs and how fast it is; `python -m bench --help`."""

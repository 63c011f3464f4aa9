"""Engines behind the port `bot.ports.Engine`."""

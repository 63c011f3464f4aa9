"""The web chat: one small page, server-sent events, health checks."""

from adapters.web.server import WebAdapter

__all__ = ["WebAdapter"]

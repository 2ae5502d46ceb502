"""Serving any ASGI app: ``worker.run`` is the way in."""

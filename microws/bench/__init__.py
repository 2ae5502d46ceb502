"""A load generator for WebSockets, which measures any server from outside."""

"""One connection: the way of messages between a view and its client."""

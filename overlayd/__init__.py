"""overlayd: a durable, verifiable event broker for an edge node."""

__version__ = "0.1.0"

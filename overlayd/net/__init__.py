"""The front door: listeners, connections, the guard around Hypercorn, and the HTTP routes."""

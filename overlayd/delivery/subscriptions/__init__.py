"""Durable, named consumers: a floor in the log, what is outstanding above it, and who delivers it."""

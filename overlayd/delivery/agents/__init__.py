"""Agents: what wakes them, how they are held back, and how their replies get into the log."""

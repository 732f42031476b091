"""Mutual authentication over HTTP (BRC-103, BRC-104): client and node prove to each other who they are."""

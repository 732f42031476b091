"""Confirmation on chain: headers, sources, the embedded regtest chain."""

"""How sources of the chain call this node back: where, and by which bearer they are known."""

CALLBACK_PATH = "/v1/chain/callback"
CALLBACK_PREFIX = "ovl_callback_"
"""Begins the bearer of each source; no key begins so."""


def is_callback_token(token: str) -> bool:
    """Whether a bearer says that it is a source's, right or wrong."""
    return token.startswith(CALLBACK_PREFIX)

"""Sources of the chain that call back: known by the bearer that each was given, and allowed that one thing."""

from collections.abc import Mapping

from overlayd.access.bearers import bearer_of
from overlayd.access.gate import Claim, RequestHead
from overlayd.access.origin import Origin, Peer
from overlayd.access.principal import Principal
from overlayd.access.secret_text import digest_of, is_same
from overlayd.model.callback import CALLBACK_PATH, is_callback_token
from overlayd.model.errors import Unauthorized


class CallbackScheme:
    """`Authorization: Bearer ovl_callback_…` on the callback route. A `Scheme` of the gate."""

    name = "callback"
    headers = frozenset((b"authorization",))
    is_ambient = False
    is_costly = False
    is_configured = False
    """Sources come in to say one thing; that doesn't make a node one that wants keys of its clients."""

    def __init__(self, tokens: Mapping[str, str]) -> None:
        """`tokens`: each source's, by its name."""
        self._digests: dict[str, bytes]
        self.replace_tokens(tokens)

    def __repr__(self) -> str:
        return f"CallbackScheme(sources={sorted(self._digests)})"

    def replace_tokens(self, tokens: Mapping[str, str]) -> None:
        """From now on these sources are known, by these tokens."""
        self._digests = {name: digest_of(token) for name, token in tokens.items()}

    def is_brought(self, head: RequestHead, peer: Peer) -> bool:
        token = bearer_of(head)
        return token is not None and is_callback_token(token)

    async def claim(self, head: RequestHead, peer: Peer, origin: Origin) -> Claim:
        """Raises Unauthorized. Every token is compared, whichever it is."""
        given = digest_of(bearer_of(head) or "")
        matches = [name for name, digest in self._digests.items() if is_same(digest, given)]
        if not matches or head.path != CALLBACK_PATH or head.method != "POST":
            raise Unauthorized(
                "the callback's token isn't valid here", subject="callback",
                hint=f"a source of the chain posts to {CALLBACK_PATH} with the token that it was given",
            )  # fmt: skip
        return Claim(Principal(name=f"source:{matches[0]}", kind="source", rights=frozenset(), address=origin.address))

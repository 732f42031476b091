"""AgentPipe's rates: documented as so many a minute and key, told with every answer."""

from collections.abc import Mapping

from overlayd.access import Principal
from overlayd.access.metering import LOCAL_KINDS
from overlayd.access.rates import Asker, Dimension, RateBook, RateRule, parse_rules
from overlayd.dialects.agentpipe.answers import rate_headers
from overlayd.dialects.agentpipe.events import Dialect
from overlayd.dialects.agentpipe.settings import AgentPipeSettings
from overlayd.model.clock import Clock

INGEST: Mapping[Dialect, str] = {"documented": "agentpipe_ingest", "wire": "agentpipe_bridge"}
CONVERSATION = "agentpipe_conversation"
UPLOAD = "agentpipe_upload"
RETRIEVAL = "agentpipe_retrieval"


def rules_of(settings: AgentPipeSettings) -> dict[str, list[RateRule]]:
    """The rates by the names that they are taken by."""
    named: dict[str, tuple[Dimension, str]] = {
        INGEST["documented"]: ("principal", settings.ingest_rate), INGEST["wire"]: ("principal", settings.bridge_rate),
        CONVERSATION: ("stream", settings.conversation_rate), UPLOAD: ("principal", settings.upload_rate),
        RETRIEVAL: ("principal", settings.retrieval_rate),
    }  # fmt: skip
    return {name: parse_rules(name, name, dimension, text) for name, (dimension, text) in named.items()}


class Throttle:
    """Holds keys to their rates. Who comes from this machine without a key isn't held to any, unless `is_local`."""

    def __init__(self, book: RateBook, clock: Clock, *, is_local: bool) -> None:
        self._book = book
        self._clock = clock
        self._is_local = is_local

    def take(self, name: str, principal: Principal, stream: str = "", count: int = 1) -> None:
        """Raises LimitReached with the rate that was hit."""
        if self._is_rated(principal):
            self._book.take(name, Asker(principal.name, stream, principal.address), count=count)

    def headers(self, name: str, principal: Principal) -> dict[str, str]:
        """What an answer tells of the rate; nothing where none is counted."""
        if not self._is_rated(principal):
            return {}
        rate = self._book.tell(name, Asker(principal.name, "", principal.address))
        return {} if rate is None else rate_headers(rate, self._clock)

    def _is_rated(self, principal: Principal) -> bool:
        return self._is_local or principal.kind not in LOCAL_KINDS

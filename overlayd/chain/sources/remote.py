"""The remote sources put together from the settings: pool, header sync, and what callbacks are known by."""

import hmac
import random
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256

from overlayd.bsv.network import NETWORKS, Network
from overlayd.chain.headers import HeaderBook
from overlayd.chain.settings import ChainSettings
from overlayd.chain.sources.abilities import RemoteSource
from overlayd.chain.sources.arc import ArcSource, Callback
from overlayd.chain.sources.arcade import ArcadeSource
from overlayd.chain.sources.calls import Sender, SourceCalls
from overlayd.chain.sources.header_sync import HeaderSync, OnFollowed
from overlayd.chain.sources.headers_service import HeadersServiceSource
from overlayd.chain.sources.health import SourceHealth, SourceMetrics
from overlayd.chain.sources.node import NodeSource
from overlayd.chain.sources.pool import ProofVerdict, SourcePool
from overlayd.chain.sources.settings import ChainSourceSettings
from overlayd.chain.sources.tokens import make_token
from overlayd.chain.sources.whatsonchain import PATHS, PUBLIC_URL, WhatsOnChainSource
from overlayd.model.callback import CALLBACK_PATH, CALLBACK_PREFIX
from overlayd.model.clock import Clock
from overlayd.model.errors import ConfigInvalid, SourceUnavailable
from overlayd.model.metrics import Metrics
from overlayd.model.txid import TxId

_SECRET_BYTES = 24


class RemoteChain:
    """Everything about the sources of `[chain]`. `pool` answers questions, `sync` keeps the headers; run `sync.run`."""

    def __init__(
        self, settings: ChainSettings, book: HeaderBook, *, sender: Sender, key: bytes, environ: Mapping[str, str],
        clock: Clock, metrics: Metrics, chance: random.Random, on_followed: OnFollowed | None = None,
    ) -> None:  # fmt: skip
        """`key`: a secret of the node that stays the same, for callbacks' tokens. Raises ConfigInvalid."""
        network = NETWORKS[settings.network]
        measured = SourceMetrics(metrics)
        self._maker = _Maker(settings, network, sender, key, environ, clock, measured, chance)
        self._made = {source: self._maker.make(source) for source in settings.sources}
        self.pool = SourcePool(
            list(self._made.values()), network, asking=settings.asking, metrics=measured, judge=self._judge
        )
        self.sync = HeaderSync(
            book, self.pool, settings=settings.asking, clock=clock, metrics=measured, on_followed=on_followed
        )

    def prepare_sources(self, wanted: Sequence[ChainSourceSettings]) -> Callable[[], None]:
        """What makes these the sources; one that stays as it was keeps how it is doing. Raises ConfigInvalid."""
        made = {source: self._made.get(source) or self._maker.make(source) for source in wanted}

        def replace() -> None:
            self._made = made
            self.pool.replace(list(made.values()))

        return replace

    async def _judge(self, txid: TxId, raw: bytes) -> ProofVerdict:
        return await self.sync.judge(txid, raw)

    def __repr__(self) -> str:
        return f"RemoteChain({self.pool!r}, {self.sync!r})"


async def ask_sources(
    settings: ChainSettings, *, sender: Sender, environ: Mapping[str, str], clock: Clock, metrics: Metrics,
    chance: random.Random,
) -> list[tuple[str, str]]:  # fmt: skip
    """Each source by name, and what is wrong with it; "" when it answers for our network. Checkpoint. Raises
    ConfigInvalid."""
    network = NETWORKS[settings.network]
    maker = _Maker(settings, network, sender, b"", environ, clock, SourceMetrics(metrics), chance)
    found = []
    for one in settings.sources:
        source = maker.make(one)
        try:
            is_on = await source.is_on(network)
        except SourceUnavailable as error:
            found.append((source.name, error.detail))
            continue
        found.append((source.name, f"it answers for another network than {network.name}" if is_on is False else ""))
    return found


def callback_tokens(settings: ChainSettings, key: bytes) -> dict[str, str]:
    """By which bearer each source shows who it is when it calls back; nothing when it isn't asked to.

    Made of the node's secret, so that callbacks that come after a restart are known.
    """
    if not settings.callback_url:
        return {}
    return {name_of(source): source_token(key, name_of(source)) for source in settings.sources if _calls_back(source)}


def source_token(key: bytes, name: str) -> str:
    """What a source gets to know a node by, and nobody else knows."""
    digest = hmac.digest(key, b"overlayd/chain-callback/1\n" + name.encode(), sha256)
    return CALLBACK_PREFIX + urlsafe_b64encode(digest[:_SECRET_BYTES]).decode()


def name_of(source: ChainSourceSettings) -> str:
    """What it is called."""
    return source.name or source.kind


def _calls_back(source: ChainSourceSettings) -> bool:
    return source.kind in ("arc", "arcade")


class _Maker:
    """Makes sources of settings."""

    def __init__(
        self, settings: ChainSettings, network: Network, sender: Sender, key: bytes, environ: Mapping[str, str],
        clock: Clock, metrics: SourceMetrics, chance: random.Random,
    ) -> None:  # fmt: skip
        self._settings = settings
        self._network = network
        self._sender = sender
        self._key = key
        self._environ = environ
        self._clock = clock
        self._metrics = metrics
        self._chance = chance

    def make(self, source: ChainSourceSettings) -> RemoteSource:
        """Raises ConfigInvalid."""
        name, asking = name_of(source), self._settings.asking
        calls = SourceCalls(
            source, sender=self._sender, token=make_token(source, self._environ), clock=self._clock, asking=asking,
            metrics=self._metrics, health=SourceHealth(name, asking, self._metrics, self._chance),
        )  # fmt: skip
        token = source_token(self._key, name)
        callback = None
        if self._settings.callback_url:
            callback = Callback(self._settings.callback_url.rstrip("/") + CALLBACK_PATH, token)
        if source.kind == "arc":
            return ArcSource(calls, source.url, callback)
        if source.kind == "arcade":
            return ArcadeSource(calls, source, token=token, callback=callback, asking=asking, chance=self._chance)
        if source.kind == "whatsonchain":
            return WhatsOnChainSource(calls, source.url or self._public_url(name))
        if source.kind == "headers":
            return HeadersServiceSource(calls, source.url)
        return NodeSource(calls, source.url)

    def _public_url(self, name: str) -> str:
        path = PATHS.get(self._network.name)
        if path is None:
            raise ConfigInvalid(
                f"chain source {name}: WhatsOnChain has no {self._network.name}", subject=f"source {name}",
                hint="give it a url",
            )  # fmt: skip
        return f"{PUBLIC_URL}/{path}"

"""Table `[chain]`: which network, and who is asked about it."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from overlayd.chain.engine_settings import AnchorSettings, WalletSettings, WatchSettings
from overlayd.chain.headers import HeadersSettings
from overlayd.chain.regtest import RegtestSettings
from overlayd.chain.sources.settings import AskingSettings, ChainSourceSettings


class ChainSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which chain packets are confirmed on, and who is asked about it."""

    network: Annotated[
        Literal["none", "regtest", "mainnet", "testnet"],
        Meta(
            description="none: no packet is confirmed. regtest: the embedded chain, whose coins are worth nothing, or that of "
            "the sources, if there are any"
        ),
    ] = "none"
    callback_url: Annotated[
        str,
        Meta(
            max_length=2048,
            description="How sources reach this node, such as https://node.example; empty: they are polled alone",
        ),
    ] = ""
    sources: Annotated[tuple[ChainSourceSettings, ...], Meta(description="Somebody who is asked about the chain")] = ()
    asking: Annotated[AskingSettings, Meta(description="How sources of the chain are asked")] = AskingSettings()
    headers: Annotated[HeadersSettings, Meta(description="How block headers are kept")] = HeadersSettings()
    watch: Annotated[WatchSettings, Meta(description="How transactions are watched")] = WatchSettings()
    wallet: Annotated[WalletSettings, Meta(description="The coins that the node pays with")] = WalletSettings()
    anchors: Annotated[AnchorSettings, Meta(extra={"inline": True})] = AnchorSettings()
    regtest: Annotated[RegtestSettings, Meta(extra={"inline": True})] = RegtestSettings()

    def __post_init__(self) -> None:
        """Raises ValueError."""
        names = [source.name or source.kind for source in self.sources]
        if repeated := next((name for name in names if names.count(name) > 1), ""):
            raise ValueError(f"two sources are called {repeated!r}; give them names")
        if self.network in ("mainnet", "testnet") and not self.sources:
            raise ValueError(f"{self.network} needs somebody who is asked about it: [[chain.sources]]")
        if self.callback_url and not self.callback_url.startswith(("https://", "http://")):
            raise ValueError("callback_url begins with https:// or http://")

"""How packets are watched, anchored and paid for: tables `[chain.watch]` and `[chain.wallet]`, and keys of `[chain]`."""

from typing import Annotated

import msgspec
from msgspec import Meta

from overlayd.model.units import Duration


class WatchSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How transactions are watched."""

    poll_interval: Annotated[
        Duration, Meta(description="Sources are asked about unconfirmed transactions so often, beside every new block")
    ] = Duration(60)
    hints_max: Annotated[
        int, Meta(ge=1, le=1_000_000, description="Hints of sources that wait to be looked at; with more, all is asked")
    ] = 10_000


class AnchorSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When the log's checkpoint is written to the chain, for streams that commit in batches."""

    anchor_interval: Annotated[
        Duration, Meta(description="A checkpoint is anchored so often, if packets wait for it")
    ] = Duration(600)
    anchor_packets: Annotated[int, Meta(ge=1, description="So many waiting packets are anchored before the time")] = (
        100_000
    )


class WalletSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The coins that the node pays with for packets and checkpoints. Its key is DIR/keys/wallet.key."""

    fee_sat_per_kb_max: Annotated[
        int, Meta(ge=1, description="Nothing is paid while sources ask for more, in satoshis for 1000 bytes")
    ] = 1000
    day_sat_max: Annotated[
        int, Meta(ge=0, description="Fees of one day (UTC) in satoshis; more waits for the next day; 0: no bound")
    ] = 100_000
    alarm_sat: Annotated[int, Meta(ge=0, description="A balance below it is warned of; 0: never")] = 10_000
    pool_coins: Annotated[
        int, Meta(ge=1, le=10_000, description="Coins that are kept ready, each for one transaction at a time")
    ] = 500
    coin_sat: Annotated[
        int, Meta(ge=100, description="What each coin of the pool holds when it is made, in satoshis")
    ] = 2000
    unconfirmed_max: Annotated[
        int, Meta(ge=0, le=24, description="Transactions that may build on each other before a block holds the first")
    ] = 3

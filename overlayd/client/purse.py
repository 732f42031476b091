"""A producer's coins: which to spend next, and what comes back. No I/O.

A coin is an output to the producer's key (P2PKH). The change of a packet's transaction is a coin again, and only so many
transactions build on each other before a block holds the first of them: proofs of long chains grow without end.
"""

from collections import defaultdict, deque
from collections.abc import Iterable
from typing import Annotated

import msgspec
from msgspec import Meta

from overlayd.model.errors import BadParameter, NoCoins

UNCONFIRMED_MAX = 3
"""Transactions that may build on each other before a block holds the first."""
Outpoint = tuple[str, int]


class Coin(msgspec.Struct, frozen=True, omit_defaults=True):
    """An output that the producer's key unlocks. `unconfirmed`: the transactions that it builds on and that no block
    holds as far as is known, the oldest first; the last is its own."""

    txid: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    vout: Annotated[int, Meta(ge=0, lt=1 << 32)]
    satoshis: Annotated[int, Meta(ge=1)]
    unconfirmed: tuple[str, ...] = ()

    @property
    def outpoint(self) -> Outpoint:
        """Its name."""
        return self.txid, self.vout


class Purse:
    """Coins, those with the fewest unconfirmed transactions behind them first. Not for several threads at once."""

    def __init__(self, coins: Iterable[Coin] = (), *, unconfirmed_max: int = UNCONFIRMED_MAX) -> None:
        """Raises BadParameter for a bound below 1."""
        if unconfirmed_max < 1:
            raise BadParameter(f"unconfirmed_max {unconfirmed_max}: at least 1", subject="unconfirmed_max")
        self._unconfirmed_max = unconfirmed_max
        self._coins: dict[Outpoint, Coin] = {}
        self._levels: list[deque[Outpoint]] = [deque() for _ in range(unconfirmed_max)]
        self._building_on: dict[str, set[Outpoint]] = defaultdict(set)
        for coin in coins:
            self.add(coin)

    def __len__(self) -> int:
        return len(self._coins)

    @property
    def satoshis(self) -> int:
        """What all coins hold."""
        return sum(coin.satoshis for coin in self._coins.values())

    def coins(self) -> list[Coin]:
        """All of them, also those that must wait for a block."""
        return list(self._coins.values())

    def add(self, coin: Coin) -> None:
        """Takes a coin. One that is there already is left as it is."""
        if coin.outpoint in self._coins:
            return
        self._coins[coin.outpoint] = coin
        for txid in coin.unconfirmed:
            self._building_on[txid].add(coin.outpoint)
        self._line_up(coin)

    def _line_up(self, coin: Coin) -> None:
        if len(coin.unconfirmed) < self._unconfirmed_max:
            self._levels[len(coin.unconfirmed)].append(coin.outpoint)

    def take(self, satoshis: int) -> Coin:
        """Takes a coin of at least so much out. Raises NoCoins."""
        for depth, level in enumerate(self._levels):
            for _ in range(len(level)):
                outpoint = level.popleft()
                coin = self._coins.get(outpoint)
                if coin is None or len(coin.unconfirmed) != depth:
                    continue  # spent, or lined up elsewhere since
                if coin.satoshis >= satoshis:
                    self._remove(coin)
                    return coin
                level.append(outpoint)
        waiting = sum(len(coin.unconfirmed) >= self._unconfirmed_max for coin in self._coins.values())
        raise NoCoins(
            f"none of {len(self._coins)} coins holds {satoshis} satoshis and may be spent; "
            f"{waiting} wait for a block",
            subject="coins", hint="bring more coins, or wait until packets are confirmed",
        )  # fmt: skip

    def put_back(self, coin: Coin, change: Iterable[Coin]) -> bool:
        """A transaction that nobody got is forgotten: its coin is there again in place of its change. False, and nothing
        changes, when some of the change was spent already."""
        made = [self._coins.get(one.outpoint) for one in change]
        if None in made:
            return False
        for one in made:
            assert one is not None
            self._remove(one)
            # As it is by now: a block may hold what it was built on.
            coin = msgspec.structs.replace(coin, unconfirmed=one.unconfirmed[:-1])
        self.add(coin)
        return True

    def _remove(self, coin: Coin) -> None:
        del self._coins[coin.outpoint]
        for txid in coin.unconfirmed:
            self._building_on[txid].discard(coin.outpoint)
            if not self._building_on[txid]:
                del self._building_on[txid]

    def note_confirmed(self, txid: str) -> None:
        """A block holds this transaction, and so all that it builds on."""
        for outpoint in tuple(self._building_on.get(txid, ())):
            coin = self._coins[outpoint]
            self._remove(coin)
            left = coin.unconfirmed[coin.unconfirmed.index(txid) + 1 :]
            self.add(msgspec.structs.replace(coin, unconfirmed=left))
            for earlier in coin.unconfirmed[: coin.unconfirmed.index(txid)]:
                self.note_confirmed(earlier)

    def __repr__(self) -> str:
        return f"Purse({len(self._coins)} coins, {self.satoshis} satoshis)"

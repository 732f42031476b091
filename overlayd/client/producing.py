"""The producer's kit: packets that bring a transaction of the producer's own, and its signature. No I/O.

A packet's commitment is computed before it is published (docs/log-format.md, Commitment). The transaction spends one of
the producer's coins: output 0 commits, what is left goes back to the key.
"""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import UNSET, Raw, UnsetType

from overlayd.bsv.anchor import Anchor, AnchorKind, anchor_output
from overlayd.bsv.brc77 import KEY_ID_BYTES, sign_message
from overlayd.bsv.brought import parse_brought
from overlayd.bsv.keys import PrivateKey
from overlayd.bsv.script import lock_to_key
from overlayd.bsv.spending import P2PKH_INPUT_BYTES, P2PKH_OUTPUT_BYTES, Spendable, build_spend, fee_of
from overlayd.bsv.tx import ExtendedTransaction, OutPoint, TxInput, TxOutput
from overlayd.client.publishing import PacketLike, build_packet, encode_packet
from overlayd.client.purse import Coin, Purse
from overlayd.model.clock import Entropy
from overlayd.model.entry import SALT_BYTES, SIGNATURE_PREFIX, commitment_of
from overlayd.model.errors import BadParameter, InvalidPacket, VerificationFailed
from overlayd.model.txid import format_hash, parse_txid
from overlayd.model.wire import ReceiptBody

SAT_PER_KB = 100
"""What miners commonly ask for, in satoshis for 1000 bytes."""
POOL_COINS = 20
COIN_SAT = 2000
_ANCHOR_BYTES = 10 + 9 + 46
_SPEND_BYTES = _ANCHOR_BYTES + P2PKH_INPUT_BYTES + P2PKH_OUTPUT_BYTES
"""A transaction with one input, the anchor and one change output."""


class _Members(msgspec.Struct):
    """What a commitment is about, cut out of a packet object as it is sent."""

    id: str = ""
    type: str = ""
    time: str = ""
    source: str = ""
    key: str = ""
    salt: str = ""
    topics: Raw = Raw(b"")
    metadata: Raw = Raw(b"")
    data: Raw | UnsetType = UNSET
    data_base64: Raw | UnsetType = UNSET
    tx: Raw | UnsetType = UNSET
    txid: Raw | UnsetType = UNSET
    signature: Raw | UnsetType = UNSET


_read_members = msgspec.json.Decoder(_Members).decode


def commitment_of_packet(stream: str, packet: PacketLike) -> bytes:
    """What the transaction of a packet object with `salt` commits to, 32 bytes. `packet` is what will be sent: the text
    of `data`, `topics` and `metadata` counts byte for byte. Raises InvalidPacket."""
    return _commit(stream, _parse(encode_packet(packet)))


def _parse(text: bytes) -> _Members:
    try:
        return _read_members(text)
    except msgspec.DecodeError as err:
        raise InvalidPacket(f"not a packet object: {err}", subject="packet") from err


def _commit(stream: str, members: _Members) -> bytes:
    sent = members.data if members.data is not UNSET else members.data_base64
    if sent is UNSET:
        raise InvalidPacket("the packet has no data", subject="packet")
    try:
        csalt = base64.b64decode(members.salt, validate=True)
    except ValueError as err:
        raise InvalidPacket("salt isn't base64", subject="salt") from err
    if len(csalt) != SALT_BYTES:
        raise InvalidPacket(f"salt holds {len(csalt)} bytes; {SALT_BYTES} are needed", subject="salt")
    return commitment_of(
        csalt, stream, id=members.id, type=members.type, time=members.time, source=members.source, key=members.key,
        topics=bytes(members.topics), metadata=bytes(members.metadata), sent=bytes(sent),
    )  # fmt: skip


class Prepared(msgspec.Struct, frozen=True):
    """A packet that is ready to be published, with its transaction. Keep it until it is answered: published again it is
    recognized, while one that is prepared anew under the same id is refused.

    `packet` is the JSON text to send, `tx` the transaction, `coin` what it spends, `change` the coins it makes.
    """

    stream: str
    id: str
    packet: bytes
    commitment: bytes
    tx: ExtendedTransaction
    coin: Coin
    change: tuple[Coin, ...]

    @property
    def txid(self) -> str:
        """64 hex digits, as it is displayed."""
        return format_hash(self.tx.tx.txid)

    def check_receipt(self, receipt: ReceiptBody) -> None:
        """Checks that the node took what was sent. Raises VerificationFailed."""
        commitment = f"sha256:{self.commitment.hex()}"
        if receipt.commitment != commitment or receipt.txid != self.txid:
            raise VerificationFailed(
                f"the receipt is about {receipt.commitment} and transaction {receipt.txid}, "
                f"the packet about {commitment} and {self.txid}",
                subject=f"receipt {receipt.stream} {receipt.sequence}",
            )  # fmt: skip


class Producer:
    """A key, its coins, and what is made of them. Not for several threads at once."""

    def __init__(
        self,
        key: PrivateKey,
        purse: Purse,
        *,
        sat_per_kb: int = SAT_PER_KB,
        is_signing: bool = True,
        pool_coins: int = POOL_COINS,
        coin_sat: int = COIN_SAT,
        entropy: Entropy | None = None,
    ) -> None:
        """`sat_per_kb`: the fee rate. `is_signing`: packets carry the key's signature, which names it to consumers.
        `pool_coins`: while there are fewer coins, change is split into more of them, of at least `coin_sat` each."""
        if sat_per_kb < 0 or coin_sat < 1:
            raise BadParameter("fee rate and coins aren't below 0", subject="sat_per_kb")
        self.key = key
        self.purse = purse
        self.script = lock_to_key(key.public_key.encoded)
        self._sat_per_kb = sat_per_kb
        self._is_signing = is_signing
        self._pool_coins = pool_coins
        self._coin_sat = coin_sat
        self._entropy = entropy or Entropy()
        self._fee = fee_of(_SPEND_BYTES, sat_per_kb)
        self._output_fee = fee_of(P2PKH_OUTPUT_BYTES, sat_per_kb)

    def prepare(
        self,
        stream: str,
        data: Any = UNSET,
        *,
        id: str,
        octets: bytes | None = None,
        type: str | None = None,
        time: str | None = None,
        source: str | None = None,
        key: str | None = None,
        topics: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Prepared:
        """A packet with its transaction and signature; members as `Client.publish`. Spends a coin of the purse.

        Raises InvalidPacket and NoCoins.
        """
        return self.prepare_packet(
            stream,
            build_packet(
                data, octets=octets, id=id, type=type, time=time, source=source, key=key, topics=topics,
                metadata=metadata,
            ),
        )  # fmt: skip

    def prepare_packet(self, stream: str, packet: PacketLike) -> Prepared:
        """As `prepare`, for a packet object; one without a `salt` gets one. Raises InvalidPacket and NoCoins."""
        text = encode_packet(packet).strip()
        members = _parse(text)
        if not members.id:
            raise InvalidPacket("a packet that brings its transaction needs an id", subject="id")
        if any(value is not UNSET for value in (members.tx, members.txid, members.signature)):
            raise InvalidPacket("the packet has a transaction or a signature already", subject="packet")
        added: dict[str, str] = {}
        if not members.salt:
            added["salt"] = members.salt = base64.b64encode(self._entropy.draw(SALT_BYTES)).decode()
        commitment = _commit(stream, members)
        if self._is_signing:
            added["signature"] = self._sign(commitment)
        coin = self.purse.take(self._fee + 1)
        tx = self._spend(coin, commitment)
        added["tx"] = tx.encode().hex()
        change = self._note_change(coin, tx)
        whole = text[:-1] + b"," + msgspec.json.encode(added)[1:]
        return Prepared(stream, members.id, whole, commitment, tx, coin, change)

    def release(self, prepared: Prepared) -> bool:
        """Takes back what was prepared and refused, so that nobody has its transaction: its coin can be spent again.
        False, and nothing changes, when its change was spent already."""
        return self.purse.put_back(prepared.coin, prepared.change)

    def _sign(self, commitment: bytes) -> str:
        key_id = self._entropy.draw(KEY_ID_BYTES)
        return base64.b64encode(sign_message(SIGNATURE_PREFIX + commitment, self.key, key_id).encode()).decode()

    def _spend(self, coin: Coin, commitment: bytes) -> ExtendedTransaction:
        outputs = [anchor_output(Anchor(AnchorKind.COMMITMENT, commitment))]
        rest = coin.satoshis - self._fee
        parts = min(self._pool_coins - len(self.purse), rest // (self._coin_sat + self._output_fee))
        if parts > 1:
            outputs += [TxOutput(rest // parts - self._output_fee, self.script)] * (parts - 1)
        spent = Spendable(
            TxInput(OutPoint(parse_txid(coin.txid), coin.vout)), TxOutput(coin.satoshis, self.script), self.key
        )
        return build_spend([spent], outputs, self.script, self._sat_per_kb)

    def _note_change(self, coin: Coin, tx: ExtendedTransaction) -> tuple[Coin, ...]:
        txid = format_hash(tx.tx.txid)
        behind = (*coin.unconfirmed, txid)
        change = tuple(Coin(txid, vout, output.satoshis, behind) for vout, output in enumerate(tx.tx.outputs) if vout)
        for one in change:
            self.purse.add(one)
        return change

    def __repr__(self) -> str:
        return f"Producer({self.key.public_key.hex()}, {self.purse!r})"


def coins_in(raw_tx: str | bytes, script: bytes, *, is_in_block: bool = False) -> list[Coin]:
    """The outputs of a transaction (raw, Extended Format or BEEF) that a locking script guards. Raises
    MalformedChainData."""
    tx = parse_brought(raw_tx).tx
    txid = format_hash(tx.txid)
    return [
        Coin(txid, vout, output.satoshis, () if is_in_block else (txid,))
        for vout, output in enumerate(tx.outputs)
        if output.script == script and output.satoshis
    ]

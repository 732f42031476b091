"""The producer's kit without a node: commitments, transactions, signatures, coins."""

import base64
import json
import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from js_packages import needs_node, run_js

from overlayd.bsv.anchor import Anchor, AnchorKind, encode_anchor_script
from overlayd.bsv.brc77 import parse_message_signature
from overlayd.bsv.keys import PrivateKey
from overlayd.bsv.script import lock_to_key
from overlayd.bsv.spending import InputVerdict, verify_spending
from overlayd.bsv.tx import OutPoint, Transaction, TxInput, TxOutput
from overlayd.client import Coin, Prepared, Producer, Purse, coins_in, commitment_of_packet
from overlayd.client.producing import POOL_COINS
from overlayd.model.definition import ConfirmRule
from overlayd.model.draft import Draft
from overlayd.model.entry import SIGNATURE_PREFIX
from overlayd.model.errors import BadParameter, InvalidPacket, NoCoins, VerificationFailed
from overlayd.model.limits import Limits
from overlayd.model.txid import TxId
from overlayd.model.wire import ReceiptBody
from overlayd.pipeline.chain_members import judge_claim
from overlayd.pipeline.decode import decode_packet

DOCS = Path(__file__).parents[2] / "docs"
KEY = PrivateKey((7).to_bytes(32, "big"))
SCRIPT = lock_to_key(KEY.public_key.encoded)
VECTORS = json.loads((DOCS / "commitment-vectors.json").read_text())["vectors"]
MEMBERS = ("stream", "id", "type", "time", "source", "key", "topics", "metadata")


def coin(number: int = 1, satoshis: int = 10_000) -> Coin:
    """A coin of the key's in a block."""
    return Coin(f"{number:064x}", 0, satoshis)


def producer(*coins: Coin, **settings: int) -> Producer:
    """A producer with some coins."""
    return Producer(KEY, Purse(coins or [coin()]), **settings)


def test_the_vectors_hold_for_packets_as_they_are_sent() -> None:
    """Each published vector, from the packet object's own text."""
    assert len(VECTORS) >= 8
    for vector in VECTORS:
        salt = base64.b64encode(bytes.fromhex(vector["csalt"])).decode()
        packet = vector["packet"][:-1] + f',"salt":"{salt}"}}'
        commitment = commitment_of_packet(vector["stream"], packet)
        assert commitment.hex() == vector["commitment"], vector["name"]
        assert encode_anchor_script(Anchor(AnchorKind.COMMITMENT, commitment)).hex() == vector["script"]
        signature = parse_message_signature(base64.b64decode(vector["signature"]))
        assert signature.verify(SIGNATURE_PREFIX + commitment).hex() == vector["signer"]


def test_the_documents_python_gives_the_vectors() -> None:
    """The function printed in log-format.md, run as it stands."""
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "log-format.md").read_text(), re.DOTALL)
    space: dict[str, object] = {}
    exec(next(block for block in blocks if "def commitment" in block), space)
    function = space["commitment"]
    for vector in VECTORS:
        texts = [vector[name].encode() for name in (*MEMBERS, "sent")]
        assert function(bytes.fromhex(vector["csalt"]), *texts).hex() == vector["commitment"]  # type: ignore[operator]


def test_the_documents_typescript_is_the_files() -> None:
    """log-format.md prints commitment.ts, which has ten lines."""
    (printed,) = re.findall(r"```ts\n(.*?)```", (DOCS / "log-format.md").read_text(), re.DOTALL)
    text = (DOCS / "commitment.ts").read_text()
    assert printed == text
    assert len([line for line in text.splitlines() if line]) <= 10
    assert "import" not in text


@needs_node
def test_the_typescript_gives_the_vectors() -> None:
    """Checked strictly by the TypeScript compiler, stripped of its types by it, and run by Node."""
    lines = "".join(msgspec.json.encode(vector).decode() + "\n" for vector in VECTORS)
    answers = run_js("commitment-answer.mjs", str(DOCS / "commitment.ts"), text=lines, timeout_s=60)
    assert answers == [vector["commitment"] for vector in VECTORS]


def test_a_prepared_packet_passes_the_nodes_own_judgement() -> None:
    """Commitment, transaction and signature are those that the pipeline asks for, and the fee is the rate's."""
    prepared = producer().prepare(
        "weather-001", {"t": 21.5}, id="a", type="reading", topics=["x"], metadata={"°": 1}, key="k", source="s",
        time="2026-01-02T03:04:05Z",
    )  # fmt: skip
    draft = judge(prepared)
    assert draft.brought is not None
    assert draft.brought.txid == prepared.tx.tx.txid
    assert draft.brought.vout == 0
    assert verify_spending(prepared.tx) == [InputVerdict.VERIFIED]
    sent = json.loads(prepared.packet)
    assert prepared.commitment == commitment_of_packet("weather-001", prepared.packet)
    signature = parse_message_signature(base64.b64decode(sent["signature"]))
    assert signature.verify(SIGNATURE_PREFIX + prepared.commitment) == KEY.public_key
    size = len(prepared.tx.tx.raw)
    assert size * 100 / 1000 <= prepared.tx.fee_sat <= (size + POOL_COINS) * 100 / 1000 + POOL_COINS


def judge(prepared: Prepared) -> Draft:
    """The draft that the node makes of it. Raises InvalidPacket where it refuses."""
    decoded = decode_packet(prepared.packet, 0, Limits())
    assert decoded.claim is not None
    judge_claim(decoded.draft, decoded.claim, prepared.stream, ConfirmRule(commit="packet"), has_chain=True)
    return decoded.draft


def test_octets_and_objects_are_taken_as_they_are() -> None:
    """Text that a caller brings goes out byte for byte; octets travel in base64."""
    one = producer().prepare_packet("a", b' {"data" : {"t" :  1.50}, "id":"x"} ')
    assert b'"data" : {"t" :  1.50}' in one.packet
    assert judge(one)
    assert judge(producer().prepare("a", octets=b"\x00\xff", id="x"))


@pytest.mark.parametrize(
    ("packet", "word"),
    [
        ('{"data":1}', "id"),
        ('{"id":"a"}', "no data"),
        ('{"data":1,"id":"a","txid":"00"}', "already"),
        ('{"data":1,"id":"a","signature":"x"}', "already"),
        ('{"data":1,"id":"a","salt":"!"}', "base64"),
        ('{"data":1,"id":"a","salt":"AAAA"}', "3 bytes"),
        ("[1]", "not a packet"),
    ],
)
def test_what_cannot_be_prepared_spends_nothing(packet: str, word: str) -> None:
    """It is refused before a coin is taken."""
    maker = producer()
    with pytest.raises(InvalidPacket, match=word):
        maker.prepare_packet("a", packet)
    assert maker.purse.coins() == [coin()]


def test_a_receipt_about_something_else_is_not_believed() -> None:
    """Commitment and transaction are compared."""
    prepared = producer().prepare("a", 1, id="x")
    receipt = ReceiptBody(
        stream="a", sequence=1, offset=1, cursor="e1", id="x", leaf_hash="sha256:" + "0" * 64, appended_at="",
        commitment=f"sha256:{prepared.commitment.hex()}", txid=prepared.txid,
    )  # fmt: skip
    prepared.check_receipt(receipt)
    for other in ({"commitment": "sha256:" + "0" * 64}, {"txid": "0" * 64}):
        with pytest.raises(VerificationFailed):
            prepared.check_receipt(msgspec.structs.replace(receipt, **other))


def test_a_large_coin_is_split_and_change_is_passed_on_only_so_often() -> None:
    """The first packet makes a pool of it; each of its coins pays for two more packets until a block comes."""
    maker = producer(coin(satoshis=1_000_000))
    first = maker.prepare("a", 1, id="0")
    assert len(first.change) == POOL_COINS == len(maker.purse)
    made = [first]
    made += [maker.prepare("a", 1, id=str(number)) for number in range(1, 1 + 2 * POOL_COINS)]
    with pytest.raises(NoCoins, match="wait for a block"):
        maker.prepare("a", 1, id="more")
    spent = [item.outpoint for one in made for item in one.tx.tx.inputs]
    assert len(set(spent)) == len(spent)
    maker.purse.note_confirmed(made[-1].txid)  # and so everything that it builds on
    again = maker.prepare("a", 1, id="again")
    assert again.coin.unconfirmed == ()
    assert made[-1].change == (msgspec.structs.replace(again.coin, unconfirmed=made[-1].change[0].unconfirmed),)
    maker.purse.note_confirmed("ff" * 32)


def test_what_was_refused_gives_its_coin_back() -> None:
    """Unless its change has been spent since."""
    maker = producer(coin(satoshis=50_000), pool_coins=1)
    refused = maker.prepare("a", 1, id="x")
    assert maker.release(refused)
    assert maker.purse.coins() == [coin(satoshis=50_000)]
    first = maker.prepare("a", 1, id="y")
    maker.prepare("a", 1, id="z")
    assert not maker.release(first)


def test_coins_that_are_too_small_are_left() -> None:
    """They don't keep larger ones from being found; a coin that the fee eats up makes no packet."""
    maker = producer(coin(1, 5), coin(2, 26), pool_coins=1)
    assert maker.prepare("a", 1, id="x").coin == coin(2, 26)
    with pytest.raises(NoCoins):
        maker.prepare("a", 1, id="y")
    with pytest.raises(BadParameter):
        Purse(unconfirmed_max=0)
    with pytest.raises(BadParameter):
        producer(sat_per_kb=-1)


def test_coins_are_found_in_a_transaction() -> None:
    """Outputs to the key, in a block or not; others and empty ones aren't."""
    other = lock_to_key(PrivateKey(bytes(31) + b"\x02").public_key.encoded)
    outputs = (TxOutput(5, SCRIPT), TxOutput(6, other), TxOutput(0, SCRIPT), TxOutput(7, SCRIPT))
    tx = Transaction((TxInput(OutPoint(TxId(bytes(32)), 0), b"\x51"),), outputs)
    assert [(one.vout, one.satoshis, len(one.unconfirmed)) for one in coins_in(tx.raw, SCRIPT)] == [
        (0, 5, 1),
        (3, 7, 1),
    ]
    assert coins_in(tx.raw.hex(), SCRIPT, is_in_block=True)[0].unconfirmed == ()


@given(st.text(min_size=1, max_size=20).filter(lambda text: text.isprintable()), st.binary(max_size=40))
def test_any_id_and_data_are_committed_as_the_node_reads_them(id: str, octets: bytes) -> None:
    """Escapes, non-ASCII, octets: the pipeline's own reading of the request gives the same commitment."""
    judge(producer().prepare("a", {"o": octets.hex(), "t": id}, id=id, metadata={id: 1}))


class Spending(RuleBasedStateMachine):
    """Packets prepared, refused and confirmed in any order: no coin twice, no chain too long, no satoshi lost."""

    def __init__(self) -> None:
        super().__init__()
        self.coins = [coin(number, 3_000 * number) for number in range(1, 4)]
        self.maker = producer(*self.coins, pool_coins=4, coin_sat=500)
        self.made: list[Prepared] = []
        self.confirmed: set[str] = set()

    @rule()
    def prepare(self) -> None:
        try:
            self.made.append(self.maker.prepare("a", len(self.made), id=f"p{len(self.made)}"))
        except NoCoins:
            fee = 26
            waiting = [one for one in self.maker.purse.coins() if len(one.unconfirmed) < 3 and one.satoshis >= fee]
            assert waiting == []

    @rule(data=st.data())
    def confirm(self, data: st.DataObject) -> None:
        if self.made:
            self.note(data.draw(st.sampled_from(self.made)))

    def note(self, one: Prepared) -> None:
        self.maker.purse.note_confirmed(one.txid)
        self.confirmed |= {one.txid, *one.coin.unconfirmed}

    @rule(data=st.data())
    def refuse(self, data: st.DataObject) -> None:
        open_ones = [one for one in self.made if one.txid not in self.confirmed]
        if open_ones:
            one = data.draw(st.sampled_from(open_ones))
            is_last = not any(other.coin.txid == one.txid for other in self.made)
            assert self.maker.release(one) == is_last
            if is_last:
                self.made.remove(one)

    @invariant()
    def nothing_is_spent_twice_or_lost(self) -> None:
        spent = [one.coin.outpoint for one in self.made]
        assert len(set(spent)) == len(spent)
        left = self.maker.purse.coins()
        assert not {one.outpoint for one in left} & set(spent)
        fees = sum(one.tx.fee_sat for one in self.made)
        assert self.maker.purse.satoshis == sum(one.satoshis for one in self.coins) - fees

    @invariant()
    def chains_are_short_and_true(self) -> None:
        parents = {one.txid: one.coin.txid for one in self.made}
        for one in self.maker.purse.coins():
            assert len(one.unconfirmed) <= 3
            behind, txid = [], one.txid
            while txid in parents and txid not in self.confirmed:
                behind.append(txid)
                txid = parents[txid]
            assert tuple(reversed(behind)) == one.unconfirmed


TestSpending = Spending.TestCase

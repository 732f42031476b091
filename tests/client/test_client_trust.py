"""What a client remembers of a log, and the histories it refuses."""

from pathlib import Path

import msgspec
import pytest
from fake_node import WELCOME, Answer, Request, fake_node, message, packet_message
from tiny_log import STREAM, TinyLog
from trio_websocket import WebSocketConnection

from overlayd.client import Client, LogView
from overlayd.model.errors import ForkDetected, VerificationFailed


async def test_the_first_node_is_believed_and_later_answers_are_held_against_it(tmp_path: Path) -> None:
    """Keys, size and root are kept in the file, and a longer log of the same history is accepted."""
    file = tmp_path / "state" / "trust.json"
    log = TinyLog(5)
    async with fake_node() as node, Client(node.url) as client:
        node.handler = log.answer
        await client.check_log(LogView(file))
        for number in range(6, 12):
            log.append(b"%d" % number)
        tree = await client.check_log(LogView(file))
    assert tree.checkpoint.size == 11
    assert msgspec.json.decode(file.read_bytes())["size"] == 11
    consistency = next(request for request in node.requests if request.path.endswith("consistency"))
    assert consistency.params == {"from": "5", "to": "11"}


async def test_a_rewritten_history_is_a_fork(tmp_path: Path) -> None:
    """The same key over other entries is refused, whatever sizes the two have."""
    file = tmp_path / "trust.json"
    async with fake_node() as node, Client(node.url) as client:
        node.handler = TinyLog(5).answer
        await client.check_log(LogView(file))
        for size in (4, 5, 9):
            node.handler = TinyLog(size, flavor="b").answer
            with pytest.raises(ForkDetected):
                await client.check_log(LogView(file))
    assert LogView(file).known.size == 5


async def test_an_older_checkpoint_of_the_same_history_is_no_fork() -> None:
    """A replica that lags behind may be asked too; the newest checkpoint stays remembered."""
    log, view = TinyLog(9), LogView()
    async with fake_node() as node, Client(node.url) as client:
        node.handler = log.answer
        await client.check_log(view)

        def lagging(request: Request) -> Answer:
            return Answer(200, log.note(4).encode()) if request.path.endswith("checkpoint") else log.answer(request)

        node.handler = lagging
        await client.check_log(view)
    assert view.known.size == 9


async def test_another_key_is_refused() -> None:
    """Once keys are known, a checkpoint of another log isn't believed, nor one signed by somebody else."""
    mine = TinyLog(3)
    view = LogView(keys=[str(mine.signer.key)])
    async with fake_node() as node, Client(node.url) as client:
        node.handler = TinyLog(3, seed=b"x" * 32).answer
        with pytest.raises(VerificationFailed):
            await client.check_log(view)


async def test_a_proof_is_checked_against_the_packet_at_hand() -> None:
    """Inclusion, stream, sequence and hashes must all be those of the packet."""
    log, view = TinyLog(7), LogView()
    async with fake_node() as node, Client(node.url) as client:
        node.handler = log.answer
        verdict = await client.verify_proof(STREAM, 3, view, subject=log.packet(3))
        assert (verdict.offset, verdict.level) == (3, "signed")
        with pytest.raises(VerificationFailed, match="other content"):
            await client.verify_proof(STREAM, 3, view, subject=log.packet(4))


async def test_a_proof_of_another_packet_is_refused() -> None:
    """The node can't answer for sequence 3 with the proof of 4, nor for another stream."""
    log, view = TinyLog(7), LogView()

    def swapped(request: Request) -> Answer:
        return Answer(200, log.proof(4)) if request.path.endswith("proof") else log.answer(request)

    async with fake_node() as node, Client(node.url) as client:
        node.handler = swapped
        with pytest.raises(VerificationFailed, match="not weather-001 3"):
            await client.verify_proof(STREAM, 3, view)
        with pytest.raises(VerificationFailed, match="not other 4"):
            await client.verify_proof("other", 4, view)


@pytest.mark.parametrize("place", [b'"salt":"', b'"leaf_hash":"sha256:', b'"inclusion_path":["sha256:'])
async def test_a_changed_proof_is_broken(place: bytes) -> None:
    """Changing a character of the proof file breaks it."""
    log = TinyLog(7)
    raw = log.proof(3)
    at = raw.index(place) + len(place)
    changed = raw[:at] + (b"1" if raw[at : at + 1] != b"1" else b"2") + raw[at + 1 :]

    def forged(request: Request) -> Answer:
        return Answer(200, changed) if request.path.endswith("proof") else log.answer(request)

    async with fake_node() as node, Client(node.url) as client:
        node.handler = forged
        with pytest.raises(VerificationFailed):
            await client.verify_proof(STREAM, 3, LogView())


async def test_a_live_reading_makes_the_node_prove_itself() -> None:
    """`seen` goes out with each connection; its proof moves the view, its absence is a fork."""
    log, view = TinyLog(5), LogView()
    asked: list[str] = []

    async def honest(socket: WebSocketConnection, params: dict[str, str]) -> None:
        asked.append(params["seen"])
        body = log.consistency(view.known.size, 8) | {"checkpoint": log.note(8)}
        welcome = message("welcome", node="n", epoch="1aaaaaaaa", head=8, session="s", consistency=body)
        await socket.send_message(welcome)
        await socket.send_message(packet_message(STREAM, 9))
        await socket.get_message()

    async def silent(socket: WebSocketConnection, params: dict[str, str]) -> None:
        await socket.send_message(WELCOME)
        await socket.get_message()

    async with fake_node() as node, Client(node.url) as client:
        node.handler = log.answer
        node.live = honest
        live = client.live(STREAM, view=view)
        root = await client.check_log(view)
        for number in range(6, 10):
            log.append(b"%d" % number)
        await live.receive()
        assert asked == [f"5:{root.checkpoint.root.hex()}"]
        assert view.known.size == 8
        await live.aclose()
        node.live = silent
        with pytest.raises(ForkDetected, match="no proof"):
            await client.live(STREAM, view=view).receive()


async def test_an_acknowledged_loss_is_told(tmp_path: Path) -> None:
    """A restored node says what it lost; the client doesn't go on as if nothing had happened."""
    log, view = TinyLog(5), LogView()
    loss = {"epoch": "1aaaaaaaa", "common_size": 3, "seen_size": 5}

    async def restored(socket: WebSocketConnection, params: dict[str, str]) -> None:
        await socket.send_message(message("welcome", node="n", epoch="2aaaaaaaa", head=4, session="s", loss=loss))
        await socket.get_message()

    async with fake_node() as node, Client(node.url) as client:
        node.handler = log.answer
        node.live = restored
        with pytest.raises(ForkDetected, match="lost entries 4 to 5"):
            await client.live(STREAM, view=view).receive()


def test_a_trust_file_that_cannot_be_read_is_not_ignored(tmp_path: Path) -> None:
    """Starting anew in silence would believe anybody."""
    file = tmp_path / "trust.json"
    file.write_text("{")
    with pytest.raises(VerificationFailed, match="trust"):
        LogView(file)


def test_pinned_keys_must_fit_the_trust_file(tmp_path: Path) -> None:
    """Keys of another log than the file's are a mistake."""
    file = tmp_path / "trust.json"
    file.write_bytes(msgspec.json.encode({"log_id": TinyLog(1).log_id, "keys": [str(TinyLog(1).signer.key)]}))
    with pytest.raises(VerificationFailed, match="another log"):
        LogView(file, keys=[str(TinyLog(1, seed=b"x" * 32).signer.key)])

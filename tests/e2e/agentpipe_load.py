"""Load on AgentPipe's surface: conversations that are streamed at a rate while pages listen. Run it by itself with
`python tests/e2e/agentpipe_load.py URL KEY LISTENERS EVENTS_A_SECOND SECONDS`."""

import json
import math
import sys
from functools import partial

import msgspec
import trio
from real_waiting import PATIENCE_S, pause_async

CONVERSATIONS = 50
SENDERS = 16
GLOBAL_LISTENERS = 5
SETTLE_S = PATIENCE_S


class Figures(msgspec.Struct):
    """What was measured. Times in milliseconds: `answer` of a request, `arrival` from sending to a listener."""

    listeners: int
    sent: int = 0
    errors: int = 0
    frames: int = 0
    frames_expected: int = 0
    lost_listeners: int = 0
    seconds: float = 0.0
    answer_p50: float = 0.0
    answer_p95: float = 0.0
    answer_p99: float = 0.0
    arrival_p50: float = 0.0
    arrival_p99: float = 0.0


class Load:
    """One run. `listeners`: most of one conversation each, a few of all."""

    def __init__(self, url: str, key: str, *, listeners: int, rate: float, seconds: float) -> None:
        self._host, port = url.removeprefix("http://").split(":")
        self._port = int(port)
        self._key = key
        self._rate = rate
        self._seconds = seconds
        self._sent_at: dict[str, float] = {}
        self._answers: list[float] = []
        self._arrivals: list[float] = []
        self._followers = [0] * CONVERSATIONS
        self.figures = Figures(listeners)

    async def run(self) -> Figures:
        """Everything, and the figures."""
        figures = self.figures
        for number in range(CONVERSATIONS):
            stream = await trio.open_tcp_stream(self._host, self._port)
            await self._post(stream, "conversation.started", number, 0)
            await stream.aclose()
        async with trio.open_nursery() as nursery:
            for number in range(figures.listeners):
                conversation = None if number < GLOBAL_LISTENERS else number % CONVERSATIONS
                if conversation is not None:
                    self._followers[conversation] += 1
                await nursery.start(self._listen, conversation)
            started = trio.current_time()
            async with trio.open_nursery() as senders:
                for number in range(SENDERS):
                    senders.start_soon(partial(self._send, number, started))
            figures.seconds = trio.current_time() - started
            with trio.move_on_after(SETTLE_S):
                while figures.frames < figures.frames_expected:
                    await pause_async(0.05)
            nursery.cancel_scope.cancel()
        figures.answer_p50, figures.answer_p95, figures.answer_p99 = _parts(self._answers, 0.5, 0.95, 0.99)
        figures.arrival_p50, figures.arrival_p99 = _parts(self._arrivals, 0.5, 0.99)
        return figures

    async def _send(self, sender: int, started: float) -> None:
        """Every sixteenth event at its time, over one connection."""
        stream = await trio.open_tcp_stream(self._host, self._port)
        total = round(self._rate * self._seconds)
        try:
            for number in range(sender, total, SENDERS):
                await trio.sleep_until(started + number / self._rate)
                conversation = number % CONVERSATIONS
                begun = trio.current_time()
                self._sent_at[f"m{number}"] = begun
                status = await self._post(stream, "message.created", conversation, number)
                self._answers.append(trio.current_time() - begun)
                self.figures.sent += 1
                self.figures.errors += status not in (200, 201)
                self.figures.frames_expected += self._followers[conversation] + min(
                    GLOBAL_LISTENERS, self.figures.listeners
                )
        finally:
            await trio.aclose_forcefully(stream)

    async def _post(self, stream: trio.SocketStream, kind: str, conversation: int, number: int) -> int:
        data: dict[str, object] = {"conversation_id": f"load-{conversation}"}
        if kind == "message.created":
            data |= {
                "message_id": f"m{number}", "agent_type": "claude", "agent_id": "claude-0", "content": "word " * 60,
                "sequence_number": number, "tokens_used": 100, "cost": 0.001,
            }  # fmt: skip
        else:
            info = {"agentpipe_version": "0", "os": "l", "os_version": "1", "go_version": "1", "architecture": "a"}
            data |= {"mode": "round-robin", "initial_prompt": "p", "participants": [], "system_info": info}
        body = json.dumps({"type": kind, "timestamp": "2026-01-01T00:00:00Z", "data": data}).encode()
        head = (
            f"POST /api/ingest HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {self._key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        await stream.send_all(head.encode() + body)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += await stream.receive_some()
        head_text, _, rest = answer.partition(b"\r\n\r\n")
        length = int(head_text.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        while len(rest) < length:
            rest += await stream.receive_some()
        return int(answer.split(b" ", 2)[1])

    async def _listen(
        self, conversation: int | None, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Counts frames until it is cancelled; started with the first one."""
        query = "" if conversation is None else f"?conversationId=load-{conversation}"
        stream = await trio.open_tcp_stream(self._host, self._port)
        head = (
            f"GET /api/realtime/stream{query} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {self._key}\r\n\r\n"
        )
        await stream.send_all(head.encode())
        buffer, is_started = b"", False
        try:
            while True:
                data = await stream.receive_some()
                if not data:
                    self.figures.lost_listeners += 1
                    if not is_started:
                        task_status.started()
                    return
                now = trio.current_time()
                buffer += data
                frames, buffer = buffer[: buffer.rfind(b"\n\n") + 1], buffer[buffer.rfind(b"\n\n") + 1 :]
                if not is_started and b'"type":"connected"' in frames:
                    is_started = True
                    task_status.started()
                for part in frames.split(b'"message_id": "')[1:]:
                    sent_at = self._sent_at.get(part[: part.index(b'"')].decode())
                    if sent_at is not None:
                        self.figures.frames += 1
                        self._arrivals.append(now - sent_at)
        finally:
            await trio.aclose_forcefully(stream)


def _parts(seconds: list[float], *shares: float) -> list[float]:
    """Percentiles in milliseconds."""
    ordered = sorted(seconds)
    return [
        round(1000 * ordered[max(0, math.ceil(share * len(ordered)) - 1)], 1) if ordered else 0.0 for share in shares
    ]


if __name__ == "__main__":
    given = sys.argv[1:]
    found = trio.run(
        Load(given[0], given[1], listeners=int(given[2]), rate=float(given[3]), seconds=float(given[4])).run
    )
    print(msgspec.json.encode(found).decode())

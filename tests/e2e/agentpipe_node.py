"""A real node with AgentPipe's surface on, and requests to it as AgentPipe's client and page make them."""

import json
import socket
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, BinaryIO

from node_process import Node
from real_waiting import PATIENCE_S

DATA = Path(__file__).parents[1] / "data" / "agentpipe"
KEY = "ap_test_conformance-key-0000000000"
"""The one in the recordings."""
CONFIG = f'[agentpipe]\nenabled = true\nbridge_key = "{KEY}"\n'


class Reply:
    """An answer."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def __repr__(self) -> str:
        return f"Reply({self.status}, {self.body[:500]!r})"


class Api:
    """Requests to a node's AgentPipe surface."""

    def __init__(self, node: Node, key: str = KEY) -> None:
        self.node = node
        self.key = key
        self.host, port = node.url.removeprefix("http://").split(":")
        self.port = int(port)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        """One request. `body`: bytes, or what becomes JSON. Keywords are headers with `_` for `-`."""
        named = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        named |= {name.replace("_", "-"): value for name, value in headers.items()}
        raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        if raw is not None:
            named.setdefault("Content-Type", "application/json")
        connection = self._connect()
        try:
            connection.request(method, path, raw, named)
            answer = connection.getresponse()
            return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def _connect(self) -> HTTPConnection:
        return HTTPConnection(self.host, self.port, timeout=60)

    def get(self, path: str, **headers: str) -> Any:
        """The JSON of an answer that must be right."""
        reply = self.ask("GET", path, **headers)
        assert reply.status == 200, reply
        return reply.json

    def ingest(self, kind: str, **data: Any) -> Reply:
        """One event of the client's dialect."""
        return self.ask("POST", "/api/ingest", {"type": kind, "timestamp": "2026-03-04T05:06:07.08Z", "data": data})

    def begin(self, conversation: str) -> None:
        """A conversation begins."""
        started = json.loads((DATA / "recorded-event-store.jsonl").read_text().splitlines()[1])
        started["data"]["conversation_id"] = conversation
        assert self.ask("POST", "/api/ingest", started).status == 201

    def say(self, conversation: str, number: int, content: str = "") -> None:
        """A message in it."""
        reply = self.ingest(
            "message.created", conversation_id=conversation, message_id=f"{conversation}-m{number}", agent_id="claude-0",
            agent_type="claude", agent_name="Claude", content=content or f"message {number}", sequence_number=number,
            tokens_used=10, cost=0.01,
        )  # fmt: skip
        assert reply.status == 201, reply

    def listen(self, path: str, **headers: str) -> "Listener":
        """A live connection."""
        return Listener(self, path, headers)


class Admin(Api):
    """The same as the service's own user, over the Unix socket."""

    def __init__(self, node: Node) -> None:
        super().__init__(node, "")

    def _connect(self) -> HTTPConnection:
        connection = HTTPConnection("localhost", timeout=60)
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.connect(f"{self.node.directory}/overlayd.sock")
        return connection


class Listener:
    """Server-sent events as they come: `frames` are those that were read, each as its lines."""

    def __init__(self, api: Api, path: str, headers: dict[str, str]) -> None:
        named = {"Authorization": f"Bearer {api.key}"} | {k.replace("_", "-"): v for k, v in headers.items()}
        self._socket = socket.create_connection((api.host, api.port), PATIENCE_S)
        lines = [f"GET {path} HTTP/1.1", "Host: localhost", *(f"{name}: {value}" for name, value in named.items())]
        self._socket.sendall("\r\n".join(lines).encode() + b"\r\n\r\n")
        self._file: BinaryIO = self._socket.makefile("rb")
        self.status = int(self._file.readline().split()[1])
        self.headers: dict[str, str] = {}
        while (line := self._file.readline()) != b"\r\n":
            name, _, value = line.decode().partition(":")
            self.headers[name.lower()] = value.strip()
        self._buffer = b""

    def __enter__(self) -> "Listener":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()

    def frame(self) -> str:
        """The next one. Raises TimeoutError."""
        while b"\n\n" not in self._buffer:
            size = int(self._file.readline(), 16)
            assert size, "the answer is over"
            self._buffer += self._file.read(size)
            self._file.readline()
        frame, _, self._buffer = self._buffer.partition(b"\n\n")
        return frame.decode()

    def event(self) -> dict[str, Any]:
        """The next one that is an event, decoded, with the frame's id as `id`."""
        while True:
            lines = self.frame().split("\n")
            data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
            if data:
                ids = [line.removeprefix("id: ") for line in lines if line.startswith("id: ")]
                assert all(line.startswith(("id: ", "data: ")) for line in lines), lines
                found: dict[str, Any] = json.loads("\n".join(data))
                return found | ({"id": ids[0]} if ids else {})


def replay(api: Api, scenario: str) -> list[Reply]:
    """The recorded requests of a scenario, byte for byte over one connection."""
    recorded = json.loads((DATA / "recorded-bridge-requests.json").read_text())["scenarios"][scenario]["requests"]
    replies = []
    with socket.create_connection((api.host, api.port), PATIENCE_S) as connection, connection.makefile("rb") as file:
        for request in recorded:
            head = [request["request_line"], *(f"{name}: {value}" for name, value in request["headers"])]
            connection.sendall("\r\n".join(head).encode() + b"\r\n\r\n" + request["body_text"].encode())
            status = int(file.readline().split()[1])
            headers = {}
            while (line := file.readline()) != b"\r\n":
                name, _, value = line.decode().partition(":")
                headers[name.lower()] = value.strip()
            replies.append(Reply(status, headers, file.read(int(headers["content-length"]))))
    return replies

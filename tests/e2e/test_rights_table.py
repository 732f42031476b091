"""Every route and every message of the live protocol, asked by everybody, against the table in docs/security.md.

With OVERLAYD_WRITE_RIGHTS=1 the table is written anew instead: look at what has changed before it is committed.
"""

import http.client
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from live_sockets import Refused, open_socket
from node_process import Node
from real_waiting import PATIENCE_S
from trio_websocket import ConnectionClosed

from overlayd.access.roles import BUILT_IN
from overlayd.access.secret_text import draw_key, format_digest
from overlayd.client import SyncClient
from overlayd.model.clock import Entropy
from overlayd.net.asyncapi import build_asyncapi
from overlayd.net.openapi import OPERATIONS

PAGE = Path(__file__).parent.parent.parent / "docs" / "security.md"
STREAM = "table.a"
SCOPED = {
    "one stream": ("publish:table.a", "read:table.a", "subscribe:table.a"),
    "own streams": ("manage:@own", "publish:own.*"),
}
EVERYBODY = ("nobody", "local", *SCOPED, *BUILT_IN)
VALUES = {
    "stream": STREAM, "sequence": "1", "key": "nosuch", "session": "nosuch", "policy": "nosuch", "receipt": "nosuch",
    "tile": "0/000.p/1", "subscription": "nosuch", "number": "1", "id": "nosuch", "n": "1", "hold": "1", "part": "nosuch", "subject": "nosuch",
}  # fmt: skip
QUERIES = {
    "/v1/read": f"?stream={STREAM}", "/v1/live": f"?stream={STREAM}", "/v1/packets": "?id=x", "/v1/log/consistency": "?from=1",
}  # fmt: skip
MORE = (
    ("GET", "/v1/log/{epoch}/tile/{tile}", "entries/000.p/1", "entries themselves"),
    ("GET", "/v1/streams/{stream}/packets", "overlayd.audit", "the audit stream"),
    ("PUT", "/v1/streams/{stream}", "own.new", "a new stream to own"),
    ("POST", "/v1/streams/{stream}/packets", "overlayd.audit", "the audit stream"),
)
"""Routes that ask for something else depending on what they are asked for: the last variable's value, and in words."""
MESSAGES: dict[str, dict[str, Any]] = {
    "ping": {"type": "ping"},
    "publish": {"type": "publish", "ref": 1, "stream": STREAM, "packets": [{"data": 1}]},
    "subscribe": {"type": "subscribe", "id": "a", "streams": [STREAM]},
    "subscribe to the audit stream": {"type": "subscribe", "id": "b", "streams": ["overlayd.audit"]},
    "unsubscribe": {"type": "unsubscribe", "id": "nosuch"},
    "ack": {"type": "ack", "id": "nosuch", "cursor": "e1"},
}
REFUSED = (401, 403)


class Walk:
    """A node with a key for each, and what each of them was answered."""

    def __init__(self, directory: Path) -> None:
        self.keys: dict[str, str] = {}
        tables = ["[access]", "loopback_free = true", "[listen]", 'trusted_proxies = ["127.0.0.1"]']
        for name in EVERYBODY[2:]:
            secret = draw_key("ovl", Entropy())
            self.keys[name] = secret.text
            what = f"scopes = {json.dumps(SCOPED[name])}" if name in SCOPED else f'roles = ["{name}"]'
            tables += [
                "[[keys]]",
                f'name = "{name.replace(" ", "-")}"',
                f'hashes = ["{format_digest(secret.digest)}"]',
                what,
            ]
        self.node = Node(directory / "data", config="\n".join(tables))

    def prepare(self) -> None:
        """A stream with a packet, and an audit stream."""
        with SyncClient(f"unix:{self.node.directory}/overlayd.sock") as client:
            client.define(STREAM, {})
            client.publish(STREAM, 1)
            self.epoch = client.node().epoch

    def headers_of(self, who: str) -> dict[str, str]:
        """What makes a request theirs. Nobody comes from elsewhere, without a credential."""
        if who == "nobody":
            return {"X-Forwarded-For": "203.0.113.9"}
        return {"Authorization": f"Bearer {self.keys[who]}"} if who in self.keys else {}

    def ask(self, who: str, method: str, path: str) -> int:
        """The status of a request without a body, so that nothing is changed by those who are let in."""
        connection = http.client.HTTPConnection(self.node.url.removeprefix("http://"), timeout=PATIENCE_S)
        try:
            connection.request(method, path, headers=self.headers_of(who))
            answer = connection.getresponse()
            status = answer.status
            answer.close()
        finally:
            connection.close()
        return status

    def path_of(self, template: str, value: str = "") -> str:
        """A path of the route; `value` stands for the last variable, or for a stream."""
        values = VALUES | {"epoch": self.epoch}
        names = re.findall(r"{(\w+)}", template)
        if value:
            values |= {"stream" if "stream" in names else names[-1]: value}
        return re.sub(r"{(\w+)}", lambda match: values.get(match[1], "nosuch"), template) + QUERIES.get(template, "")

    async def say(self, who: str) -> dict[str, bool]:
        """Which messages are taken from somebody, the handshake first."""
        taken = dict.fromkeys(("connect", *MESSAGES), False)
        try:
            async with open_socket(f"{self.node.url}/v1/live", self.headers_of(who)) as connection:
                taken["connect"] = json.loads(await connection.get_message())["type"] == "welcome"
                for name, message in MESSAGES.items():
                    await connection.send_message(json.dumps(message))
                    answer = json.loads(await connection.get_message())
                    while answer["type"] == "packet":
                        answer = json.loads(await connection.get_message())
                    taken[name] = answer.get("code") not in ("access.forbidden", "access.unauthorized")
        except (Refused, ConnectionClosed):
            pass
        return taken


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    """A node whose keys are declared."""
    walk = Walk(tmp_path_factory.mktemp("walk"))
    try:
        walk.node.wait_ready()
        walk.prepare()
        yield walk
    finally:
        assert walk.node.stop() == 0, "".join(walk.node.output[-40:])


def row_of(what: str, allowed: dict[str, bool]) -> str:
    """A line of the table."""
    return f"| {what} | " + " | ".join("yes" if allowed[who] else "-" for who in EVERYBODY) + " |"


def write_table(rows: list[str]) -> None:
    """Puts the rows into docs/security.md."""
    text = PAGE.read_text()
    start, end = text.index("<!-- rights -->"), text.index("<!-- /rights -->")
    head = [f"| | {' | '.join(EVERYBODY)} |", f"|---|{'---|' * len(EVERYBODY)}"]
    PAGE.write_text("\n".join([f"{text[:start]}<!-- rights -->", *head, *rows, text[end:]]))


def written_table() -> list[str]:
    """The rows that docs/security.md has."""
    text = PAGE.read_text()
    block = text[text.index("<!-- rights -->") : text.index("<!-- /rights -->")]
    return [line for line in block.splitlines() if line.startswith("| `") or line.startswith("| WebSocket")]


async def test_every_route_and_message_with_everybody(walk: Walk) -> None:
    """The answers say who is let in and who isn't; the page says the same. A route that isn't on the page fails."""
    rows = []
    for operation in sorted(OPERATIONS, key=lambda one: (one.path, one.method)):
        method, path = operation.method.upper(), operation.path
        statuses = await asked(walk, method, walk.path_of(path))
        rows.append(row_of(f"`{method} {path}`", statuses))
        for other, template, value, words in MORE:
            if (other, template) == (method, path):
                statuses = await asked(walk, method, walk.path_of(path, value))
                rows.append(row_of(f"`{method} {path}`: {words}", statuses))
    said = {who: await walk.say(who) for who in EVERYBODY}
    for name in ("connect", *MESSAGES):
        rows.append(row_of(f"WebSocket: {name}", {who: said[who][name] for who in EVERYBODY}))
    if os.environ.get("OVERLAYD_WRITE_RIGHTS"):
        write_table(rows)
    assert written_table() == rows, "OVERLAYD_WRITE_RIGHTS=1 writes what was found into docs/security.md"


async def asked(walk: Walk, method: str, path: str) -> dict[str, bool]:
    """Who is let in. A checkpoint after each, so that the node's other work goes on."""
    allowed = {}
    for who in EVERYBODY:
        status = await trio.to_thread.run_sync(walk.ask, who, method, path)
        assert status < 500, (who, method, path, status)
        allowed[who] = status not in REFUSED
    return allowed


def test_the_node_serves_nothing_that_isnt_in_the_table() -> None:
    """The operations are those of the app (tests/test_daemon.py holds them against each other), each with its row."""
    messages = {
        name.removeprefix("client.") for name in build_asyncapi()["components"]["messages"] if "client." in name
    }
    assert messages <= {message["type"] for message in MESSAGES.values()}
    rows = "\n".join(written_table())
    for operation in OPERATIONS:
        assert f"| `{operation.method.upper()} {operation.path}` |" in rows

"""The configuration of a running node read anew: by command, by signal, and refused."""

import signal
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import httpx
import msgspec
import pytest
import trio
from live_sockets import open_socket
from node_process import Node
from real_waiting import PATIENCE_S
from test_commands import on
from trio_websocket import WebSocketConnection

from overlayd.cli.exits import CONFIG, FAILED, OK
from overlayd.client import SyncClient
from overlayd.model.wire import Packet

CONFIG_TEXT = """
[limits]
batch_packets_max = 5
[log]
level = "warning"
[[streams]]
name = "declared"
[[subscriptions]]
name = "worker"
kind = "pull"
streams = ["declared"]
"""


class Configured:
    """A node with a file that tests change."""

    def __init__(self, directory: Path) -> None:
        self.node = Node(directory / "data", config=CONFIG_TEXT)
        self.file = directory / "data.toml"

    def write(self, text: str) -> None:
        """What the file says from now on."""
        self.file.write_text(text)

    def changes(self, *arguments: str) -> dict[str, tuple[str, str, str]]:
        """What `overlayd` with the arguments told."""
        done = on(self.node, *arguments, "--json")
        assert done.returncode == OK, done.stderr
        report = msgspec.json.decode(done.stdout)
        return {one["name"]: (one["before"], one["after"], one["effect"]) for one in report["changes"]}

    def get(self, path: str) -> httpx.Response:
        """What the node answers."""
        return httpx.get(self.node.url + path)

    def subscriptions(self) -> set[str]:
        """The names of all."""
        done = on(self.node, "subscriptions", "list", "--json")
        assert done.returncode == OK, done.stderr
        return {msgspec.json.decode(line)["name"] for line in done.stdout.splitlines()}

    def audited(self, action: str) -> str:
        """What the audit stream holds of an action, as text."""
        with SyncClient(f"unix:{self.node.directory}/overlayd.sock") as client:
            packets = [packet for packet in client.packets("overlayd.audit") if isinstance(packet, Packet)]
        return "\n".join(bytes(packet.data_payload).decode() for packet in packets if packet.type == action)

    def publish_as(self, secret: str) -> int:
        """The status of a packet sent with a key."""
        headers = {"Authorization": f"Bearer {secret}"}
        url = f"{self.node.url}/v1/streams/declared/packets"
        return httpx.post(url, json={"data": 1}, headers=headers).status_code

    def batch(self, count: int) -> int:
        """The status of publishing so many at once."""
        packets = [{"data": number} for number in range(count)]
        return httpx.post(f"{self.node.url}/v1/streams/declared/packets", json=packets).status_code


@pytest.fixture
def configured(tmp_path: Path) -> Iterator[Configured]:
    """A node of its own for each test."""
    made = Configured(tmp_path)
    made.node.wait_ready()
    try:
        yield made
    finally:
        assert made.node.stop() == 0, "".join(made.node.output[-40:])


async def until(socket: WebSocketConnection, kind: str) -> None:
    """Reads messages up to one of the kind."""
    with trio.fail_after(PATIENCE_S):
        while msgspec.json.decode(await socket.get_message())["type"] != kind:
            pass


async def test_a_reload_changes_what_can_change_and_keeps_sessions(configured: Configured) -> None:
    """Limits, log level, streams, subscriptions and rates; what needs a restart is named and stays; the socket that
    was open gets the next packet."""
    node = configured.node
    assert configured.batch(6) == 413
    assert configured.changes("reload") == {}
    configured.write(
        CONFIG_TEXT.replace("batch_packets_max = 5", "batch_packets_max = 7\nreaders = 3")
        .replace('"warning"', '"info"')
        .replace('name = "declared"', 'name = "declared"\ntitle = "Now"')
        + '[[streams]]\nname = "more"\n[rates]\nlocal = true\npublish_per_stream = "2/d"\n'
        + '[[subscriptions]]\nname = "second"\nkind = "pull"\nstreams = ["more"]\n'
    )
    async with open_socket(f"{node.url}/v1/live?stream=declared", {}) as socket:
        await until(socket, "subscribed")
        wanted = configured.changes("reload", "--dry-run")
        assert wanted == configured.changes("check-config", "--diff", "--config", str(configured.file))
        assert {name: effect for name, (_, _, effect) in wanted.items()} == {
            "limits.batch_packets_max": "now", "limits.readers": "restart", "log.level": "now", "rates.local": "now",
            "rates.publish_per_stream": "now", "streams.declared.title": "now", "streams.more": "now",
            "subscriptions.second": "now",
        }  # fmt: skip
        assert configured.batch(6) == 413, "a dry run changed something"
        assert configured.changes("reload") == wanted
        assert configured.changes("reload") == {"limits.readers": wanted["limits.readers"]}
        assert configured.batch(1) == 201
        await until(socket, "packet")
    assert configured.batch(7) == 413, "more than the rate lets through at once"
    assert configured.subscriptions() == {"worker", "second"}
    assert configured.get("/v1/streams/declared").json()["title"] == "Now"
    assert configured.get("/v1/streams/more").status_code == 200
    ready = configured.get("/readyz").json()
    assert ready["checks"]["config"] == {"ok": True, "detail": "a restart is needed for limits.readers"}
    assert 'overlayd_config_reloads_total{result="ok"} 3' in configured.get("/metrics").text
    assert "streams.declared.title" in configured.audited("config.reload")


def test_a_broken_file_changes_nothing(configured: Configured) -> None:
    """The mistake is named with file and line, to the command and in the log; not even what is right in it counts."""
    for wrong, said in (
        ("[limits]\nbatch_packets_max = 9\nsessions_max = -1\n", "expected"),
        ("[limits]\nbatch_packets_max = 9\n[[streams]\n", "not TOML"),
        ('[limits]\nbatch_packets_max = 9\n[[streams]]\nname = "declared"\nschema = {type = "nonsense"}\n', "schema"),
        (
            '[limits]\nbatch_packets_max = 9\n[[subscriptions]]\nname = "x"\nkind = "webhook"\nstreams = ["a"]\n'
            'webhook = {url = "http://10.0.0.1/"}\n',
            "subscriptions.x",
        ),
    ):
        configured.write(wrong)
        done = on(configured.node, "reload")
        assert done.returncode in (FAILED, CONFIG), done.stdout
        assert said in done.stderr
        assert "data.toml:" in done.stderr
        assert configured.batch(6) == 413
    configured.node.process.send_signal(signal.SIGHUP)
    configured.node.wait_for("not reloaded")
    assert configured.batch(6) == 413
    assert configured.subscriptions() == {"worker"}


def test_a_hangup_does_the_same(configured: Configured) -> None:
    """SIGHUP takes over what the file says; the log tells of it."""
    configured.write(
        CONFIG_TEXT.replace("batch_packets_max = 5", "batch_packets_max = 6").replace('"warning"', '"info"')
    )
    configured.node.process.send_signal(signal.SIGHUP)
    configured.node.wait_for("configuration read anew")
    assert configured.batch(6) == 201


def test_keys_and_roles_follow_the_file(configured: Configured) -> None:
    """A key that is declared counts at once, with what its role means now; one that is declared no more is refused. A
    policy that there isn't is named, and changes nothing."""
    secrets = [f"ovl_live_{letter * 32}" for letter in "ab"]
    keys = "".join(
        f'[[keys]]\nname = "{name}"\nhashes = ["sha256:{sha256(secret.encode()).hexdigest()}"]\nroles = ["press"]\n'
        for name, secret in zip("ab", secrets, strict=True)
    )
    role = '[[access.roles]]\nname = "press"\nscopes = ["publish:declared"]\n'
    configured.write(CONFIG_TEXT + role + keys)
    assert set(configured.changes("reload")) == {"access.roles[press]", "keys[a]", "keys[b]"}
    assert [configured.publish_as(secret) for secret in secrets] == [201, 201]
    configured.write(CONFIG_TEXT + role + keys + 'policy = "nobody"\n')
    assert "nobody" in on(configured.node, "reload").stderr
    configured.write(CONFIG_TEXT + role + keys.partition('[[keys]]\nname = "b"')[0])
    assert set(configured.changes("reload")) == {"keys[b]"}
    assert [configured.publish_as(secret) for secret in secrets] == [201, 401]
    configured.write(CONFIG_TEXT + role.replace("publish:declared", "read:declared") + keys)
    assert set(configured.changes("reload")) == {"access.roles[press].scopes", "keys[b]"}
    assert [configured.publish_as(secret) for secret in secrets] == [403, 403]

"""Secrets of every kind are sent through a whole run of the node, right and wrong, and looked for in all it puts out."""

import base64
import http.client
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from canaries import Canaries
from joserfc import jwt
from joserfc.jwk import OctKey
from node_process import Node, listen_tls
from real_waiting import PATIENCE_S
from tls_authority import Authority

from overlayd.access.secret_text import digest_of, draw_key, draw_ticket, format_digest
from overlayd.bsv.keys import PrivateKey
from overlayd.client import SyncClient, access_calls
from overlayd.model.clock import Entropy, SystemClock
from overlayd.model.wire_access import KeyIn

ROTATE = ("POST /v1/subscriptions/hook/rotate-secret",)


class Run:
    """A node with secrets in its configuration and environment, and what was planted."""

    def __init__(self, directory: Path) -> None:
        self.canaries = Canaries()
        self.directory = directory
        self.hashed = self.canaries.plant("hashed key", draw_key("ovl", Entropy()).text)
        self.filed = self.canaries.plant("key from a file", draw_key("ovl", Entropy()).text)
        self.in_environment = self.canaries.plant("key of a command", draw_key("ovl", Entropy()).text)
        file = directory / "press.key"
        file.write_text(self.filed)
        file.chmod(0o600)
        hashes = [format_digest(digest_of(text)) for text in (self.hashed, self.in_environment)]
        self.config = "\n".join(
            [
                '[log]\nlevel = "debug"\nformat = "json"', "[[keys]]", 'name = "hashed"', f"hashes = {json.dumps(hashes)}",
                'roles = ["admin"]', "[[keys]]", 'name = "press"', f'file = "{file}"', 'scopes = ["publish:press.*"]',
            ]
        )  # fmt: skip
        self.config += "\n" + self._own_secrets()
        self.node = Node(directory / "data", config=self.config)
        self.config_file = directory / "data.toml"

    def _own_secrets(self) -> str:
        """Secrets of the node's other parts: a JWT secret, a TLS key, a wallet key from a file, a token's PIN."""
        jwt_secret = self.canaries.plant("jwt secret", "shared-" + "s3cret-" * 6)
        self.token = self.canaries.plant("jwt", make_token(jwt_secret))
        pin = self.canaries.plant("pin", "pin-of-the-token-4711")
        wallet = self.canaries.plant_bytes("wallet key", Entropy().draw(32))
        for name, content in (("jwt", jwt_secret.encode()), ("pin", pin.encode()), ("wallet", wallet.hex().encode())):
            (self.directory / name).write_bytes(content)
            (self.directory / name).chmod(0o600)
        certificate = Authority(self.directory).issue("localhost")
        private_key = certificate.read_text().partition("PRIVATE KEY-----\n")[2].splitlines()
        self.canaries.plant("tls key", private_key[1])
        self.bridge = self.canaries.plant("bridge key", draw_key("ap", Entropy()).text)
        declared = self.canaries.plant("declared webhook secret", "whsec_" + base64.b64encode(b"d" * 24).decode())
        header = self.canaries.plant("declared webhook header", "header-of-a-declared-hook")
        return "\n".join(
            [
                "[agentpipe]", "enabled = true", f'bridge_key = "{self.bridge}"', "[[subscriptions]]", 'name = "declared"',
                'kind = "webhook"', 'streams = ["press.*"]', "[subscriptions.webhook]", 'url = "http://127.0.0.1:45999/"',
                f'secret = "{declared}"', "[subscriptions.webhook.headers]", f'X-Token = "{header}"',
                "[node]", f'wallet_key = "file:{self.directory / "wallet"}"', '[chain]\nnetwork = "regtest"',
                "[[access.jwt]]", 'name = "login"', 'issuer = "https://login.example"', 'algorithm = "HS256"',
                f'audience = ["overlayd"]\nfile = "{self.directory / "jwt"}"\nscopes = ["read"]',
                "[[access.identities]]", 'name = "friend"', f'key = "{PrivateKey(b"f" * 32).public_key.hex()}"',
                'scopes = ["read"]', listen_tls(certificate), '[webhooks]\nallow_private = ["127.0.0.0/8"]',
            ]
        )  # fmt: skip

    def plant_own_keys(self) -> None:
        """What the node drew for itself."""
        for file in sorted((self.directory / "data" / "keys").iterdir()):
            self.canaries.plant_bytes(f"own {file.name}", file.read_bytes())

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> bytes:
        """One request; its whole answer is looked at."""
        connection = http.client.HTTPConnection(self.node.url.removeprefix("http://"), timeout=PATIENCE_S)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            content = b"" if answer.headers.get("Content-Type", "").startswith("text/event-stream") else answer.read()
            self.canaries.look_at(f"{method} {path.partition('?')[0]}", str(answer.headers).encode() + content)
            answer.close()
        finally:
            connection.close()
        return content

    def command(self, *arguments: str, **environment: str) -> str:
        """A command of the node's; what it prints is looked at."""
        done = subprocess.run(
            [sys.executable, "-m", "overlayd", *arguments], capture_output=True, text=True, timeout=60,
            env=os.environ | environment, check=False,
        )  # fmt: skip
        self.canaries.look_at(f"overlayd {' '.join(arguments[:2])}", done.stdout + done.stderr)
        return done.stdout


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """A run, whose node is stopped at the end whatever happened."""
    running = Run(tmp_path)
    try:
        running.node.wait_ready()
        yield running
    finally:
        running.node.stop()


def test_no_secret_comes_out_anywhere(run: Run) -> None:
    """Logs at their most talkative, answers, errors, metrics, the log itself, the database, commands, arguments."""
    canaries = run.canaries
    use_right_ones(run)
    use_wrong_ones(run)
    use_own_keys(run)
    look_around(run)
    assert run.node.stop() == 0
    canaries.look_at("the node's output", "".join(run.node.output))
    own = tuple(file.name for file in (run.directory / "data" / "keys").iterdir())
    assert {"log.ed25519", "log-2.ed25519", "identity.key", "sealing.key", "index.key"} <= set(own)
    canaries.look_at_files("data directory", run.directory / "data", but=own)
    assert canaries.found() == []
    assert len(canaries.seen) > 30
    assert "access.failed" in "".join(content.decode("utf-8", "replace") for _, content in canaries.seen)


def use_right_ones(run: Run) -> None:
    """Keys of the configuration, keys of the API, rotated ones, tickets: on every way in."""
    canaries = run.canaries
    bearer = f"Bearer {run.hashed}"
    run.ask(
        "POST",
        "/v1/streams/press.a/packets",
        b'{"data":1}',
        Authorization=f"Bearer {run.filed}",
        Content_Type="application/json",
    )
    with SyncClient(run.node.url, run.hashed) as client:
        made = client.send(access_calls.create_key(KeyIn(scopes=["subscribe:*"], owner="alice")))
        canaries.plant("made key", made.key)
        rotated = client.send(access_calls.rotate_key(made.id, "1h"))
        canaries.plant("rotated key", rotated.key)
    with SyncClient(run.node.url, rotated.key) as client:
        ticket = canaries.plant("ticket", client.send(access_calls.issue_ticket()).ticket)
    run.ask("GET", f"/v1/live?stream=press.a&ticket={ticket}")
    run.ask("GET", f"/v1/live?stream=press.a&ticket={ticket}")
    run.ask("GET", "/v1/keys", Authorization=bearer)
    run.ask("GET", f"/v1/keys/{made.id}", Authorization=bearer)
    run.ask("DELETE", f"/v1/keys/{made.id}", Authorization=bearer)
    run.ask("GET", "/v1/node", Authorization=f"Bearer {rotated.key}")


def use_own_keys(run: Run) -> None:
    """The keys of the log, of webhooks and of token issuers are used and changed, and what fails is answered."""
    canaries = run.canaries
    bearer = f"Bearer {run.hashed}"
    assert b'"origin"' in run.ask("GET", "/v1/node", Authorization=f"Bearer {run.token}")
    run.ask("GET", "/v1/streams/press.a/packets/1", Authorization=f"Bearer {run.token[:-2]}AA")
    for name, secret in (("hook", "whsec_" + base64.b64encode(b"w" * 24).decode()), ("wrong", "hunter2-" * 4)):
        canaries.plant(
            f"webhook secret of {name}", secret, may_be_in=("POST /v1/subscriptions",) if name == "hook" else ()
        )
        body = {
            "name": name, "kind": "webhook", "streams": ["press.*"],
            "webhook": {
                "url": "http://127.0.0.1:45999/", "secret": secret,
                "headers": {"X-Token": canaries.plant(f"webhook header of {name}", f"header-of-{name}-" + "0123456789")},
            },
        }  # fmt: skip
        run.ask(
            "POST",
            "/v1/subscriptions",
            json.dumps(body).encode(),
            Authorization=bearer,
            Content_Type="application/json",
        )
    again = canaries.plant("webhook secret, changed", "whsec_" + base64.b64encode(b"x" * 24).decode(), may_be_in=ROTATE)
    run.ask(
        "POST", "/v1/subscriptions/hook/rotate-secret", json.dumps({"secret": again}).encode(), Authorization=bearer,
        Content_Type="application/json",
    )  # fmt: skip
    rotated = json.loads(run.ask("POST", "/v1/log/keys/rotate", Authorization=bearer))
    assert [key["state"] for key in rotated["keys"]] == ["retired", "current"]
    assert json.loads(run.ask("GET", "/v1/subscriptions/hook", Authorization=bearer))["name"] == "hook"
    event = b'{"type":"bridge.test","timestamp":"2026-01-01T00:00:00Z","data":{}}'
    for key in (run.bridge, canaries.plant("wrong bridge key", draw_key("ap", Entropy()).text)):
        run.ask("POST", "/api/ingest", event, Authorization=f"Bearer {key}", Content_Type="application/json")
    run.ask("POST", "/v1/admin/reload?dry_run=true", Authorization=bearer)
    for path in (
        "/v1/subscriptions/declared",
        "/v1/subscriptions/declared/attempts",
        "/api/sessions",
        "/v1/log/keys",
        "/v1/log/checkpoint",
        "/v1/wallet",
        "/v1/chain",
        "/v1/subscriptions",
        "/v1/subscriptions/hook",
    ):
        run.ask("GET", path, Authorization=bearer)
    run.plant_own_keys()
    pin = run.directory / "pin"
    token = f"pkcs11:token=none;object=none?module-path=/nowhere.so&pin-source=file:{pin}"
    in_uri = canaries.plant("pin in a URI", "pin-in-the-uri-1234")
    for number, place in enumerate((token, f"{token}&pin-value={in_uri}", f"file:{run.directory / 'jwt'}")):
        config = run.directory / f"wrong-{number}.toml"
        config.write_text(f'[node]\ncheckpoint_key = "{place}"\n')
        data = str(run.directory / f"other-{number}")
        run.command("run", "--data", data, "--listen", "127.0.0.1:0", "--config", str(config))


def make_token(secret: str) -> str:
    """Of the issuer in the configuration."""
    now = SystemClock().now_us() // 1_000_000
    claims = {"iss": "https://login.example", "aud": "overlayd", "sub": "alice", "exp": now + 3600}
    return jwt.encode({"alg": "HS256"}, claims, OctKey.import_key(secret))


def use_wrong_ones(run: Run) -> None:
    """Where they don't belong: other headers, URLs, bodies, names."""
    canaries = run.canaries
    for number, (method, path) in enumerate(
        [("GET", "/v1/node"), ("POST", "/v1/streams/a/packets"), ("PUT", "/v1/streams/a"), ("GET", "/v1/live")]
    ):
        wrong = canaries.plant(f"wrong key {number}", draw_key("ovl", Entropy()).text)
        run.ask(method, path, Authorization=f"Bearer {wrong}")
        run.ask(
            method, path, Authorization=f"Basic {canaries.plant(f'password {number}', 'hunter2-' * 3 + str(number))}"
        )
        run.ask(method, path, Cookie=f"session={canaries.plant(f'cookie {number}', 'crumbs-' * 3 + str(number))}")
    in_query = canaries.plant("key in a query", draw_key("ovl", Entropy()).text)
    in_path = canaries.plant("key in a path", draw_key("ap", Entropy()).text)
    wrong_ticket = canaries.plant("wrong ticket", draw_ticket(Entropy()).text)
    run.ask("GET", f"/v1/live?key={in_query}")
    run.ask("GET", f"/v1/streams/{in_path}/packets", Authorization=f"Bearer {run.hashed}")
    run.ask("GET", f"/v1/live?ticket={wrong_ticket}")
    run.ask("GET", f"/v1/node?ticket={wrong_ticket}")


def look_around(run: Run) -> None:
    """Everything that the node tells about itself, and what commands print."""
    bearer = f"Bearer {run.hashed}"
    for path in (
        "/metrics", "/v1/node", "/readyz", "/openapi.json", "/v1/sessions", "/v1/usage", "/v1/streams",
        "/v1/streams/overlayd.audit/packets?limit=1000", "/v1/read?stream=overlayd.audit", "/v1/quotas",
    ):  # fmt: skip
        run.ask("GET", path, Authorization=bearer)
    url = ("--url", run.node.url)
    run.command("check-config", "--config", str(run.config_file))
    run.command("node", *url, OVERLAYD_KEY=run.in_environment)
    run.command("keys", "list", *url, "--json", OVERLAYD_KEY=run.in_environment)
    run.command("streams", "list", *url, OVERLAYD_KEY=run.in_environment)
    run.command("node", *url, "--key-file", str(run.directory / "press.key"))
    for process in Path("/proc").glob(f"{run.node.process.pid}/cmdline"):
        run.canaries.look_at("arguments of the node", process.read_bytes())


def test_a_canary_would_be_found(tmp_path: Path) -> None:
    """In whatever form it came out."""
    canaries = Canaries()
    secret = canaries.plant("key", draw_key("ovl", Entropy()).text)
    canaries.look_at("a log", f'{{"key":"{secret[:-4]}…"}}')
    canaries.look_at("hex", secret.encode().hex())
    (tmp_path / "file").write_text(secret)
    canaries.look_at_files("files", tmp_path)
    assert canaries.found() == ["key in a log", "key in files file", "key in hex"]

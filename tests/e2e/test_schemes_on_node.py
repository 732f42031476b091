"""Tokens, identities and users of the machine on a real node: each way in on every lane, tickets, and restarts."""

import base64
import http.client
import http.server
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from joserfc import jwt
from joserfc.jwk import OKPKey
from js_packages import needs_node, run_js
from live_sockets import Refused, open_socket
from node_process import Node
from real_waiting import PATIENCE_S
from trio_websocket import ConnectionClosed

from overlayd.access.identity.headers import signed_digest
from overlayd.bsv.keys import PrivateKey
from overlayd.client import SyncClient
from overlayd.model.clock import SystemClock
from overlayd.model.errors import Forbidden

CLOCK = SystemClock()
FARM, OTHER = PrivateKey(b"\x11" * 32), PrivateKey(b"\x12" * 32)
ISSUER_KEY = OKPKey.generate_key("Ed25519")
PUBLISHED_KEY = OKPKey.generate_key("Ed25519")
CONFIG = """
[access]
mutual = {{ requests_per_session = 4 }}

[[access.identities]]
name = "farm"
key = "{farm}"
scheme = "preimage-v1"
scopes = ["publish:farm.*", "read:farm.*", "subscribe:farm.*", "manage:@own"]
policy = "enterprise"

[[access.identities]]
name = "other"
key = "{other}"
scheme = "body-nonce"
scopes = ["publish:other"]

[[access.unix_users]]
name = "me"
uid = {uid}
scopes = ["publish:mine.*"]

[[access.jwt]]
name = "login"
issuer = "https://login.example"
algorithm = "EdDSA"
audience = ["overlayd"]
file = "{file}"
clock_skew = "0s"

[[access.jwt.grants]]
claim = "scope"
scopes = ["{{scope}}"]

[[access.jwt]]
name = "published"
issuer = "https://published.example"
algorithm = "EdDSA"
audience = ["overlayd"]
jwks_url = "{url}"
jwks_allow_private = ["127.0.0.0/8"]
roles = ["producer"]
"""


class _Keys(http.server.BaseHTTPRequestHandler):
    """An issuer's page of keys."""

    def do_GET(self) -> None:
        body = json.dumps({"keys": [{**PUBLISHED_KEY.as_dict(private=False), "kid": "k1"}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is printed."""


@contextmanager
def published_keys() -> Iterator[str]:
    """The URL of an issuer's keys on this machine."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Keys) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/jwks"
        finally:
            server.shutdown()
            thread.join()


def config_of(directory: Path, url: str) -> str:
    """The node's configuration."""
    file = directory / "login.pem"
    file.write_bytes(ISSUER_KEY.as_pem(private=False))
    return CONFIG.format(
        farm=FARM.public_key.hex(), other=OTHER.public_key.hex(), file=file, url=url, uid=os.getuid()
    )  # fmt: skip


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node that knows two issuers, two identities and this user."""
    directory = tmp_path_factory.mktemp("schemes")
    with published_keys() as url:
        running = Node(directory / "data", config=config_of(directory, url))
        try:
            yield running.wait_ready()
        finally:
            assert running.stop() == 0, "".join(running.output[-40:])


def ask(node: Node, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> tuple[int, dict[str, Any]]:
    """One request over TCP: status and JSON body."""
    connection = http.client.HTTPConnection(node.url.removeprefix("http://"), timeout=PATIENCE_S)
    if body:
        headers = {"Content-Type": "application/json", **headers}
    connection.request(method, path, body or None, headers)
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    return answer.status, json.loads(text) if text else {}


def signed(key: PrivateKey, body: bytes, *, off_s: int = 0) -> dict[str, str]:
    """The three headers, with a nonce of nanoseconds as the clients of gitdata send it."""
    nonce = str(CLOCK.now_us() * 1000 + off_s * 10**9)
    digest = signed_digest("preimage-v1" if key is FARM else "body-nonce", nonce, body)
    return {"X-Identity-Key": key.public_key.hex(), "X-Nonce": nonce, "X-Signature": key.sign_digest(digest).hex()}


def token(lasts_s: float = 60, issuer: str = "login", **claims: Any) -> dict[str, str]:
    """The header with a token."""
    named = {
        "iss": f"https://{issuer}.example",
        "sub": "alice",
        "aud": "overlayd",
        "exp": int(CLOCK.now_us() / 1e6 + lasts_s),
        **claims,
    }
    key, kid = (ISSUER_KEY, {}) if issuer == "login" else (PUBLISHED_KEY, {"kid": "k1"})
    text = jwt.encode({"alg": "Ed25519", **kid}, named, key, algorithms=["Ed25519"])
    # The library calls the algorithm by its newer name; issuers mostly use the older one.
    head = base64.urlsafe_b64encode(json.dumps({"alg": "EdDSA", "typ": "JWT", **kid}).encode()).rstrip(b"=").decode()
    signed_part = f"{head}.{text.split('.')[1]}"
    signature = _private(key).sign(signed_part.encode())
    return {"Authorization": f"Bearer {signed_part}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"}


def _private(key: OKPKey) -> Ed25519PrivateKey:
    """Its native form."""
    assert isinstance(key.private_key, Ed25519PrivateKey)
    return key.private_key


async def follow(node: Node, ticket: str, stream: str) -> dict[str, Any]:
    """The first packet that a socket opened with a ticket gets."""
    async with open_socket(f"{node.url}/v1/live?stream={stream}&from=beginning&ticket={ticket}", {}) as socket:
        while True:
            message: dict[str, Any] = json.loads(await socket.get_message())
            if message["type"] == "packet":
                return message


async def test_signed_headers_publish_read_and_give_tickets(node: Node) -> None:
    """Both schemes, on the publish lane and on Quart; one ticket opens one socket."""
    body = b'{"data":{"t":21}}'
    status, problem = ask(node, "POST", "/v1/streams/farm.a/packets", signed(FARM, body), body)
    assert status == 201, problem
    assert ask(node, "POST", "/v1/streams/farm.a/data?id=d1", signed(FARM, b"7"), b"7")[0] == 201
    assert ask(node, "POST", "/v1/streams/other/packets", signed(OTHER, body), body)[0] == 201
    assert ask(node, "POST", "/v1/streams/farm.a/packets", signed(OTHER, body), body)[0] == 403
    status, read = ask(node, "GET", "/v1/streams/farm.a/packets", signed(FARM, b""))
    assert (status, len(read["packets"])) == (200, 2)
    assert ask(node, "GET", "/v1/usage", signed(FARM, b""))[0] == 200
    status, made = ask(node, "POST", "/v1/tickets", signed(FARM, b""))
    assert status == 201, made
    packet = await follow(node, made["ticket"], "farm.a")
    assert packet["packet"]["data_payload"] == {"t": 21}
    with pytest.raises(Refused) as caught:
        await follow(node, made["ticket"], "farm.a")
    assert caught.value.status == 401


def test_a_signed_request_counts_once(node: Node) -> None:
    """Not again, not late, not with another body, not in another's name."""
    body = b'{"data":1}'
    headers = signed(FARM, body)
    assert ask(node, "POST", "/v1/streams/farm.once/packets", headers, body)[0] == 201
    status, problem = ask(node, "POST", "/v1/streams/farm.once/packets", headers, body)
    assert (status, problem["subject"]) == (401, "nonce")
    for other, sent in (
        (signed(FARM, body, off_s=-400), body), (signed(FARM, body), b'{"data":2}'),
        ({**signed(FARM, body), "X-Identity-Key": OTHER.public_key.hex()}, body),
        ({**signed(FARM, body), "Authorization": "Bearer ovl_live_" + "A" * 32}, body),
    ):  # fmt: skip
        assert ask(node, "POST", "/v1/streams/farm.once/packets", other, sent)[0] in (400, 401)
    with SyncClient(f"unix:{node.directory}/overlayd.sock") as me, pytest.raises(Forbidden):
        me.stream("farm.once")
    assert ask(node, "GET", "/v1/streams/farm.once", signed(FARM, b""))[1]["head_sequence"] == 1


async def test_tokens_publish_read_and_give_tickets(node: Node) -> None:
    """With what their claims give; a token of an issuer whose keys are published counts, too."""
    scope = token(scope="publish:t.a read:t.a subscribe:t.a")
    body = b'{"data":5}'
    assert ask(node, "POST", "/v1/streams/t.a/packets", scope, body)[0] == 201
    assert ask(node, "POST", "/v1/streams/t.b/packets", scope, body)[0] == 403
    assert ask(node, "GET", "/v1/streams/t.a/packets", scope)[1]["head_sequence"] == 1
    assert ask(node, "POST", "/v1/streams/t.b/packets", token(issuer="published"), body)[0] == 201
    assert ask(node, "POST", "/v1/streams/t.b/packets", token(issuer="third"), body)[0] == 401
    assert ask(node, "GET", "/v1/node", token(-5))[0] == 401
    status, made = ask(node, "POST", "/v1/tickets", scope)
    assert status == 201, made
    assert (await follow(node, made["ticket"], "t.a"))["packet"]["data_payload"] == 5
    webhook = {"name": "w", "kind": "pull", "streams": ["t.a"]}
    status, problem = ask(node, "POST", "/v1/subscriptions", scope, json.dumps(webhook).encode())
    assert status == 403
    assert "lasts" in problem["detail"]


@pytest.mark.slow  # a token can't expire sooner than its clock's next second
async def test_a_live_session_ends_with_its_token(node: Node) -> None:
    """`bye` and 4001."""
    url = f"{node.url}/v1/live?stream=t.a"
    async with open_socket(url, token(2.5, scope="subscribe:t.a")) as socket:
        messages: list[dict[str, Any]] = []

        async def read_on() -> None:
            while True:
                messages.append(json.loads(await socket.get_message()))

        with trio.fail_after(PATIENCE_S), pytest.raises(ConnectionClosed) as caught:
            await read_on()
    assert (messages[-1]["type"], messages[-1]["reason"]) == ("bye", "access.expired")
    assert caught.value.reason is not None
    assert caught.value.reason.code == 4001


def test_a_user_of_the_machine_has_the_rights_of_their_entry(node: Node) -> None:
    """Over the Unix socket, even where the user would otherwise be the node's own."""
    with SyncClient(f"unix:{node.directory}/overlayd.sock") as client:
        client.publish("mine.a", 1)
        with pytest.raises(Forbidden):
            client.publish("farm.a", 1)


def test_the_node_says_how_it_is_protected(node: Node) -> None:
    """At start and in /readyz; its identity's secret is for the service alone."""
    node.wait_for("credentials are asked for: 2 JWT issuers, identities")
    detail = ask(node, "GET", "/readyz", token(scope="read"))[1]["checks"]["access"]["detail"]
    assert detail == "credentials are asked for: 2 JWT issuers, identities"
    assert (node.directory / "keys" / "identity.key").stat().st_mode & 0o777 == 0o600


@needs_node
def test_the_sdks_own_client_is_understood_and_understands(node: Node) -> None:
    """AuthFetch of @bsv/sdk: GET with a query, POST of JSON and of octets, errors, tickets; each answer is verified
    there. It shakes hands again when its session is over, after four requests here."""
    octets = bytes(range(256)) * 20
    json_type, octet_type = {"content-type": "application/json"}, {"content-type": "application/octet-stream"}
    questions: list[dict[str, Any]] = [
        {"method": "GET", "path": "/v1/node?a=1&b=%20x", "headers": {}},
        {"method": "PUT", "path": "/v1/streams/farm.js", "headers": json_type, "text": "{}"},
        {"method": "POST", "path": "/v1/streams/farm.js/packets", "headers": json_type, "text": '{"data":{"ü":1}}'},
        {"method": "POST", "path": "/v1/streams/farm.js/data?id=o", "headers": {**octet_type, "x-bsv-topic": "t"},
         "base64": base64.b64encode(octets).decode()},
        {"method": "GET", "path": "/v1/streams/farm.js/packets?after=0&limit=5", "headers": {}},
        {"method": "POST", "path": "/v1/tickets", "headers": {}},
        {"method": "POST", "path": "/v1/streams/elsewhere/packets", "headers": json_type, "text": '{"data":1}'},
        {"method": "GET", "path": "/v1/live?stream=farm.js", "headers": {}},
        {"method": "GET", "path": "/nothing", "headers": {}},
        {"method": "DELETE", "path": "/v1/streams/farm.js?confirm=farm.js", "headers": {}},
    ]  # fmt: skip
    lines = "".join(json.dumps(question) + "\n" for question in questions)
    answers = run_js("mutual-fetch.mjs", node.url, FARM.secret.hex(), text=lines, timeout_s=60)
    assert [answer.get("status", answer) for answer in answers] == [200, 201, 201, 201, 200, 201, 403, 403, 404, 200]
    assert {answer["key"] for answer in answers} == {json.loads(answers[0]["text"])["identity_key"]}
    packets = json.loads(answers[4]["text"])["packets"]
    assert packets[0]["data_payload"] == {"ü": 1}
    assert packets[1]["data_payload"] == base64.b64encode(octets).decode()
    assert json.loads(answers[5]["text"])["ticket"].startswith("ovl_ticket_")
    assert "tickets" in json.loads(answers[7]["text"])["hint"]


@needs_node
def test_the_sdks_own_client_is_refused_in_words(node: Node) -> None:
    """When nobody knows it."""
    question = json.dumps({"method": "GET", "path": "/v1/node", "headers": {}})
    (answer,) = run_js("mutual-fetch.mjs", node.url, "77" * 32, text=question + "\n")
    assert "identity isn't known here" in answer["error"]


def test_after_a_kill_no_signed_request_counts_again(tmp_path: Path) -> None:
    """What was answered before is refused by the next process; and an unknown policy keeps a node from starting."""
    body = b'{"data":1}'
    with published_keys() as url:
        config = config_of(tmp_path, url)
        node = Node(tmp_path / "data", config=config).wait_ready()
        headers = signed(FARM, body)
        assert ask(node, "POST", "/v1/streams/farm.a/packets", headers, body)[0] == 201
        node.process.kill()
        node.stop()
        node = Node(tmp_path / "data", config=config).wait_ready()
        status, problem = ask(node, "POST", "/v1/streams/farm.a/packets", headers, body)
        assert (status, "started" in problem["detail"]) == (401, True)
        ahead = signed(FARM, body, off_s=30)
        assert ask(node, "POST", "/v1/streams/farm.a/packets", ahead, body)[0] == 201
        assert node.stop() == 0
        broken = Node(tmp_path / "data", config=config.replace('policy = "enterprise"', 'policy = "gold"'))
        broken.wait_for("access.identities farm: there is no quota policy 'gold'")
        assert broken.process.wait(20) == 78
        broken.stop()

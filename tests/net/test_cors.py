"""Pages of other sites: which may use the API, and what browsers are told."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from net_rig import Answer, Edge, open_edge
from publish_rig import open_publishing
from tls_rig import open_tls_edge

from overlayd.access import Peer
from overlayd.model.errors import ConfigInvalid
from overlayd.model.limits import Limits
from overlayd.model.units import Duration
from overlayd.net.cors import OriginHeaders, parse_origins
from overlayd.net.head import parse_head
from overlayd.net.settings import ListenSettings

APP = "https://app.example"
LISTED = ListenSettings(tcp=("127.0.0.1:0",), origins=(APP, "http://127.0.0.1:5173"))
FROM_APP = {"Origin": APP, "Sec_Fetch_Site": "cross-site"}


async def ask(edge: Edge, method: str, target: str, body: bytes | None = None, **headers: str) -> Answer:
    """One answer on a connection of its own."""
    async with await edge.connect() as client:
        return await client.request(method, target, body, **headers)


@pytest.mark.parametrize(
    ("text", "origin"),
    [("https://App.Example", APP), ("https://app.example:443", APP), ("http://app.example:80", "http://app.example"),
     ("https://app.example:8443", "https://app.example:8443"), ("http://[::1]:3000", "http://[::1]:3000"),
     ("tauri://localhost", "tauri://localhost"), ("chrome-extension://abcdefgh", "chrome-extension://abcdefgh")],
)  # fmt: skip
def test_origins_are_written_as_browsers_write_them(text: str, origin: str) -> None:
    """In lower case, without the scheme's own port."""
    assert parse_origins((text,)) == {origin}


@pytest.mark.parametrize(
    "text", ["*", "null", "", "app.example", "https://", "https://app.example/", "https://a@b", "https://app.example:99999",
             "https://*.example", "https://app.example, https://b.example"],
)  # fmt: skip
def test_what_names_nobody_is_refused(text: str) -> None:
    """There is no star, and `null` is every sandboxed page there is."""
    with pytest.raises(ConfigInvalid, match="not an origin"):
        parse_origins((text,))


async def test_a_listed_page_reads_answers(tmp_path: Path) -> None:
    """Its origin is named back, never a star, never with the browser's own credentials; caches are told."""
    async with open_edge(tmp_path, settings=LISTED) as edge:
        answer = await ask(edge, "GET", "/echo", **FROM_APP)
        assert answer.status == 200
        assert answer.headers["access-control-allow-origin"] == APP
        assert "ratelimit" in answer.headers["access-control-expose-headers"]
        assert answer.headers["vary"] == "origin"
        assert "access-control-allow-credentials" not in answer.headers
        posted = await ask(edge, "POST", "/echo", b"x", Origin="http://127.0.0.1:5173", Sec_Fetch_Site="same-site")
        assert posted.headers["access-control-allow-origin"] == "http://127.0.0.1:5173"


async def test_everybody_else_is_told_nothing(tmp_path: Path) -> None:
    """Own pages and clients without a page get their answers as always, foreign pages a refusal that they can't read."""
    async with open_edge(tmp_path, settings=LISTED) as edge:
        plain = await ask(edge, "GET", "/echo")
        assert (plain.status, plain.headers["vary"]) == (200, "origin")
        own = await ask(edge, "GET", "/echo", Origin="http://localhost")
        foreign = await ask(edge, "GET", "/echo", Origin="https://evil.example")
        assert (own.status, foreign.status) == (200, 403)
        for answer in (plain, own, foreign):
            assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    "origin",
    ["null", "https://app.example.evil.test", "https://evilapp.example", "https://app.example@evil.test", "https://app.example:444",
     "https://app.example.", "http://app.example", "https://app.example/", "https://app.example#", "https://app.exampleevil.test",
     "https://APP.EXAMPLE.evil.test", "file://", "https://app.example https://evil.test", "https://app.example,https://evil.test",
     "https://app.example\x00.evil.test", "*", "https://localhost.evil.test", "https://127.0.0.1.evil.test", "blob:https://app.example"],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
async def test_origins_that_look_like_a_listed_one(tmp_path: Path, origin: str, method: str) -> None:
    """Neither a preflight nor an answer names them, and nothing is done for them."""
    async with open_edge(tmp_path, settings=LISTED) as edge:
        wanted = {"Access_Control_Request_Method": "POST"} if method == "OPTIONS" else {}
        answer = await ask(edge, method, "/echo", b"x" if method == "POST" else None, Origin=origin, **wanted)
        assert answer.status in (400, 403)
        assert "access-control-allow-origin" not in answer.headers
        assert edge.calls == []


async def test_without_origins_nothing_is_added(tmp_path: Path) -> None:
    """A node whose settings name no pages says nothing about them."""
    async with open_edge(tmp_path) as edge:
        answer = await ask(edge, "GET", "/echo")
        assert not {"vary", "access-control-allow-origin", "strict-transport-security"} & set(answer.headers)
        assert (await ask(edge, "GET", "/echo", **FROM_APP)).status == 403


@pytest.mark.parametrize("target", ["/nothing", "/crash", "/echo?x=%zz"])
async def test_refusals_can_be_read_too(tmp_path: Path, target: str) -> None:
    """A page shows what was wrong with its request only if it may read the problem."""
    async with open_edge(tmp_path, settings=LISTED) as edge:
        answer = await ask(edge, "GET", target, **FROM_APP)
        assert answer.headers["access-control-allow-origin"] == APP
        refused = await ask(edge, "GET", "/echo", Via="1.1 proxy", **FROM_APP)
        assert refused.status == 403
        assert refused.headers["access-control-allow-origin"] == APP


async def test_a_preflight_names_the_routes_methods(tmp_path: Path) -> None:
    """Asked without credentials, answered for every route, with those headers that something here reads."""
    async with open_edge(tmp_path, settings=LISTED) as edge, await edge.connect() as client:
        asked = "authorization, Content-Type,ce-id, x-bsv-auth-nonce , x-evil, cookie, bad header"
        answer = await client.request(
            "OPTIONS", "/echo", Access_Control_Request_Method="PUT", Access_Control_Request_Headers=asked, **FROM_APP
        )
        assert answer.status == 204
        assert answer.headers["access-control-allow-origin"] == APP
        assert answer.headers["access-control-allow-methods"] == "GET, HEAD, OPTIONS, POST, PUT"
        assert answer.headers["access-control-allow-headers"] == "authorization, content-type, ce-id, x-bsv-auth-nonce"
        assert answer.headers["access-control-max-age"] == "600"
        assert "access-control-allow-private-network" not in answer.headers
        private = await client.request(
            "OPTIONS", "/nowhere", Access_Control_Request_Method="GET", Access_Control_Request_Private_Network="true",
            **FROM_APP,
        )  # fmt: skip
        assert private.headers["access-control-allow-private-network"] == "true"
        assert private.headers["access-control-allow-methods"].startswith("GET, HEAD, OPTIONS, POST")
        assert (await client.request("GET", "/healthz")).status == 200
        assert edge.calls == ["/healthz"]


async def test_a_foreign_preflight(tmp_path: Path) -> None:
    """A page that isn't listed is refused before it can send anything."""
    async with open_edge(tmp_path, settings=LISTED) as edge:
        answer = await ask(edge, "OPTIONS", "/echo", Origin="https://evil.example", Access_Control_Request_Method="PUT")
        assert answer.status == 403
        assert "access-control-allow-origin" not in answer.headers


async def test_options_that_are_no_preflight(tmp_path: Path) -> None:
    """Without an origin, without a method asked for, or with a body, it is a request as any other."""
    async with open_edge(tmp_path, settings=LISTED) as edge:
        assert (await ask(edge, "OPTIONS", "/echo", Access_Control_Request_Method="PUT")).headers["allow"]
        assert "access-control-allow-methods" not in (await ask(edge, "OPTIONS", "/echo", **FROM_APP)).headers
        with_body = await ask(edge, "OPTIONS", "/echo", b"x", Access_Control_Request_Method="PUT", **FROM_APP)
        assert "access-control-allow-methods" not in with_body.headers


@pytest.mark.parametrize("is_fast", [True, False])
async def test_published_packets_are_answered_to_pages(tmp_path: Path, is_fast: bool) -> None:
    """Receipts, quick ones among them, refusals and streamed answers alike, whether lanes are on or off."""
    async with (
        open_publishing(tmp_path, Limits(), is_fast=is_fast, listen=LISTED) as (edge, _),
        await edge.connect() as client,
    ):
        target = "/v1/streams/a/packets"
        for body, kind, status in (
            (b'{"data":1}', "application/json", 201), (b'{"data":2}', "application/json", 201),
            (b'{"data":', "application/json", 400), (b'{"data":3}\n', "application/x-ndjson", 201),
            (b"<a/>", "text/xml", 415),
        ):  # fmt: skip
            answer = await client.request("POST", target, body, Content_Type=kind, **FROM_APP)
            assert (answer.status, answer.headers["access-control-allow-origin"]) == (status, APP)
        mine = await client.request("POST", target, b'{"data":1}', Content_Type="application/json")
        assert (mine.status, mine.headers["vary"]) == (201, "origin")
        assert "access-control-allow-origin" not in mine.headers


async def test_browsers_are_told_to_keep_to_tls(tmp_path: Path) -> None:
    """But not by a node on their own machine: they would do so for everything else on it."""
    async with open_tls_edge(tmp_path) as tls, await tls.connect() as client:
        assert "strict-transport-security" not in (await client.request("GET", "/healthz")).headers
    head = parse_head(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", Limits())
    remote = Peer("tcp", address="192.0.2.7", local="192.0.2.1", is_tls=True)
    assert OriginHeaders(ListenSettings()).of(head, remote) == ((b"strict-transport-security", b"max-age=31536000"),)
    assert OriginHeaders(ListenSettings(hsts=Duration(0))).of(head, remote) == ()
    assert OriginHeaders(ListenSettings()).of(head, Peer("tcp", address="192.0.2.7", local="192.0.2.1")) == ()


@given(st.binary(max_size=200).filter(lambda raw: not set(raw) & set(b"\r\n\0")), st.booleans())
def test_any_headers_are_answered(raw: bytes, is_header_list: bool) -> None:
    """Whatever a browser sends, what is named back was listed before."""
    rules = OriginHeaders(LISTED)
    name = b"Access-Control-Request-Headers" if is_header_list else b"Origin"
    other = b"" if not is_header_list else b"Origin: " + APP.encode() + b"\r\n"
    lines = b"OPTIONS / HTTP/1.1\r\nHost: a\r\nAccess-Control-Request-Method: GET\r\n" + other
    head = parse_head(lines + name + b": " + raw + b"\r\n\r\n", Limits())
    answer = dict(rules.preflight(head) or ())
    assert answer.get(b"access-control-allow-origin", APP.encode()) in (APP.encode(), b"http://127.0.0.1:5173")
    assert set(answer.get(b"access-control-allow-headers", b"")) <= set(
        b"abcdefghijklmnopqrstuvwxyz-0123456789!#$%&'*+.^_`|~, "
    )


def test_two_origins_are_none() -> None:
    """A request that names two pages is nobody's."""
    head = parse_head(f"GET / HTTP/1.1\r\nHost: a\r\nOrigin: {APP}\r\nOrigin: {APP}\r\n\r\n".encode(), Limits())
    assert OriginHeaders(LISTED).of(head, Peer("tcp")) == ((b"vary", b"origin"),)

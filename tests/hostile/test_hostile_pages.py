"""What a web page, a proxy or a rebound name can make others send to a keyless node, on the real port."""

from pathlib import Path

import pytest
from net_rig import Edge, open_edge

from overlayd.net.settings import ListenSettings

FORM = "application/x-www-form-urlencoded"
EVIL = "https://evil.example"
HANDSHAKE = {
    "Connection": "Upgrade", "Upgrade": "websocket", "Sec_WebSocket_Version": "13",
    "Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ==",
}  # fmt: skip


async def refused(edge: Edge, method: str, path: str, *, host: str = "localhost", **headers: str) -> str:
    """The code with which a request is refused."""
    body = b'{"t":21}' if method in ("POST", "PUT") else None
    async with await edge.connect() as client:
        answer = await client.request(method, path, body, host=host, **headers)
        assert answer.status in (400, 403)
        assert "access-control-allow-origin" not in answer.headers
        return str(answer.json["code"])


async def test_dns_rebinding(edge: Edge) -> None:
    """A page whose name was pointed at 127.0.0.1 is known by its Host, whatever it asks for."""
    for host in ("evil.example", "evil.example:7878", "localhost.evil.example"):
        assert await refused(edge, "GET", "/echo", host=host) == "access.host"
        assert await refused(edge, "POST", "/echo", host=host) == "access.host"
        assert await refused(edge, "GET", "/v1/live", host=host, **HANDSHAKE) == "access.host"
        own = {"Origin": f"http://{host}", "Sec_Fetch_Site": "same-origin"}
        assert await refused(edge, "POST", "/echo", host=host, **own) == "access.host"


async def test_rebinding_with_an_absolute_target(edge: Edge) -> None:
    """The authority of an absolute target counts, not a friendly Host beside it."""
    answer = await edge.say(b"GET http://evil.example/echo HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert (answer.status, answer.json["code"]) == (403, "access.host")


@pytest.mark.parametrize("site", [{"Sec_Fetch_Site": "cross-site"}, {}])
async def test_form_post_from_a_page(edge: Edge, site: dict[str, str]) -> None:
    """A form on another page can't publish, in new browsers nor in old ones."""
    assert await refused(edge, "POST", "/echo", Origin=EVIL, Content_Type=FORM, **site) == "access.origin"
    assert await refused(edge, "POST", "/echo", Origin="null", Content_Type="text/plain", **site) == "access.origin"


async def test_form_post_without_origin(edge: Edge) -> None:
    """Fetch metadata alone is enough."""
    assert await refused(edge, "POST", "/echo", Sec_Fetch_Site="cross-site", Content_Type=FORM) == "access.origin"
    assert await refused(edge, "POST", "/echo", Sec_Fetch_Site="same-site", Content_Type=FORM) == "access.origin"


async def test_cross_site_websocket(edge: Edge) -> None:
    """A WebSocket from another page is refused before its handshake is answered; browsers don't ask first."""
    for origin in (EVIL, "null", "http://localhost:3000", "http://127.0.0.1.evil.example"):
        assert await refused(edge, "GET", "/v1/live", Origin=origin, **HANDSHAKE) == "access.origin"


async def test_own_websocket(edge: Edge) -> None:
    """A page that the node served itself may open one."""
    host = f"localhost:{edge.port}"
    async with await edge.connect() as client:
        answer = await client.request("GET", "/v1/live", host=host, Origin=f"http://{host}", **HANDSHAKE)
        assert answer.status == 101


async def test_cross_site_reads(edge: Edge) -> None:
    """Images, scripts and event sources of another page get nothing."""
    assert await refused(edge, "GET", "/echo", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors") == "access.origin"
    assert await refused(edge, "GET", "/drip", Origin=EVIL, Accept="text/event-stream") == "access.origin"


async def test_preflight(edge: Edge) -> None:
    """A preflight is refused without any CORS header, so that the browser goes no further."""
    ask = {"Access_Control_Request_Method": "PUT", "Origin": EVIL}
    assert await refused(edge, "OPTIONS", "/echo", **ask) == "access.origin"


async def test_answers_cannot_be_framed_or_embedded(edge: Edge) -> None:
    """Every answer says that it isn't for frames, other origins or guessing its type; errors too."""
    async with await edge.connect() as client:
        for path in ("/healthz", "/nothing"):
            headers = (await client.request("GET", path)).headers
            assert headers["x-frame-options"] == "DENY"
            assert headers["cross-origin-resource-policy"] == "same-origin"
            assert headers["x-content-type-options"] == "nosniff"
            assert "frame-ancestors 'none'" in headers["content-security-policy"]
    answer = await edge.say(b"nonsense\r\n\r\n")
    assert answer.headers["x-frame-options"] == "DENY"


@pytest.mark.parametrize("header", ["Forwarded", "X_Forwarded_For", "X_Real_IP", "Via", "X_Forwarded_Host"])
async def test_proxy_in_front_of_a_keyless_node(edge: Edge, header: str) -> None:
    """A proxy on the same machine brings the whole world to loopback; its header gives it away."""
    values = {header: "for=203.0.113.5" if header == "Forwarded" else "203.0.113.5"}
    assert await refused(edge, "POST", "/echo", **values) == "access.proxied"
    assert await refused(edge, "GET", "/echo", **values) == "access.proxied"
    assert await refused(edge, "GET", "/v1/live", **values, **HANDSHAKE) == "access.proxied"
    async with await edge.connect_unix() as client:
        assert (await client.request("GET", "/echo", **values)).status == 403


async def test_trusted_proxy(tmp_path: Path) -> None:
    """Behind a trusted proxy the forwarded client counts: it has no key, so it is nobody; on the node itself it is."""
    settings = ListenSettings(tcp=("127.0.0.1:0",), trusted_proxies=("127.0.0.1",), hosts=("node.example",))
    async with open_edge(tmp_path, settings=settings) as edge:
        assert await refused(edge, "POST", "/echo", X_Forwarded_For="203.0.113.5", host="node.example") == (
            "access.forbidden"
        )
        assert await refused(edge, "POST", "/echo", X_Forwarded_For="127.0.0.1, 203.0.113.5") == "access.forbidden"
        async with await edge.connect() as client:
            answer = await client.request("GET", "/echo", X_Forwarded_For="203.0.113.5, 127.0.0.1")
            assert answer.status == 403
        async with await edge.connect() as client:
            assert (await client.request("GET", "/echo")).status == 200

"""The PROXY protocol: its header, taken apart; and who may send one."""

import ipaddress
import struct
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from net_rig import GET_HEALTH, Answer, Edge, RawClient, limits_with, open_edge
from tls_rig import open_tls_edge
from tls_wire import in_clear_text

from overlayd.access.origin import Peer, is_loopback_address
from overlayd.model.limits import Limits
from overlayd.model.units import Duration, Size
from overlayd.net.opening import client_of
from overlayd.net.proxy_protocol import SIGNATURE, ProxyHeader, WrongProxyHeader, parse_proxy_header
from overlayd.net.settings import ListenSettings

pytestmark = in_clear_text
BYTES_MAX = 2048
BALANCED = ListenSettings(tcp=("127.0.0.1:0",), proxy_protocol=("127.0.0.1",), hosts=("node.example",))
FAMILIES = {4: 0x11, 6: 0x21}


def encode_header(
    source: str = "198.51.100.7", destination: str = "192.0.2.1", *, ports: tuple[int, int] = (4711, 443),
    command: int = 1, extra: bytes = b"", family: int | None = None, version: int = 2,
) -> bytes:  # fmt: skip
    """A header as a balancer writes it."""
    addresses = ipaddress.ip_address(source).packed + ipaddress.ip_address(destination).packed
    body = addresses + struct.pack(">HH", *ports) + extra
    family = FAMILIES[ipaddress.ip_address(source).version] if family is None else family
    return SIGNATURE + struct.pack(">BBH", version << 4 | command, family, len(body)) + body


@st.composite
def headers(draw: st.DrawFn) -> tuple[bytes, ProxyHeader]:
    """A good header and what it says."""
    version = draw(st.sampled_from((4, 6)))
    source, destination = draw(st.ip_addresses(v=version)), draw(st.ip_addresses(v=version))
    ports = draw(st.tuples(st.integers(0, 65535), st.integers(0, 65535)))
    extra = draw(st.binary(max_size=200))
    raw = encode_header(str(source), str(destination), ports=ports, extra=extra)

    def plain(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
        return str(getattr(address, "ipv4_mapped", None) or address)

    return raw, ProxyHeader(
        len(raw), source=plain(source), source_port=ports[0], destination=plain(destination), destination_port=ports[1]
    )


@given(headers(), st.binary(max_size=50))
def test_good_headers_mean_what_they_say(given_header: tuple[bytes, ProxyHeader], rest: bytes) -> None:
    """Addresses and ports of either family, whatever fields stand behind them and bytes behind those."""
    raw, expected = given_header
    assert parse_proxy_header(raw + rest, BYTES_MAX) == expected


@given(headers(), st.data())
def test_a_header_comes_in_pieces(given_header: tuple[bytes, ProxyHeader], data: st.DataObject) -> None:
    """No part of a header is taken for a whole one or for a wrong one."""
    raw, _ = given_header
    assert parse_proxy_header(raw[: data.draw(st.integers(0, len(raw) - 1))], BYTES_MAX) is None


@given(st.one_of(st.binary(max_size=300), st.binary(max_size=100).map(lambda tail: SIGNATURE + tail)))
def test_any_bytes_are_judged(data: bytes) -> None:
    """Whatever comes is a header, the beginning of one, or refused."""
    with suppress(WrongProxyHeader):
        header = parse_proxy_header(data, BYTES_MAX)
        assert header is None or 16 <= header.size <= len(data)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"PROXY TCP4 198.51.100.7 192.0.2.1 4711 443\r\n", "version 1"),
        (b"GET / HTTP/1.1\r\n", "doesn't begin"),
        (SIGNATURE[:-1] + b"\0", "doesn't begin"),
        (encode_header(version=1), "of version 1"),
        (encode_header(version=3), "of version 3"),
        (encode_header(command=2), "command 2"),
        (encode_header(family=0x41), "family"),
        (encode_header(family=0x13), "family"),
        (encode_header(family=0x12), "datagram"),
        (encode_header("2001:db8::1", "::1", family=0x22), "datagram"),
        (encode_header(family=0x21), "bytes of addresses"),
        (encode_header(extra=bytes(2100)), "at most 2048"),
        (SIGNATURE + b"\x21\x11\xff\xff", "at most 2048"),
    ],
)
def test_wrong_headers(raw: bytes, words: str) -> None:
    """Version 1, unknown versions, commands and families, datagrams, short addresses, and too much of it."""
    with pytest.raises(WrongProxyHeader, match=words):
        parse_proxy_header(raw, BYTES_MAX)


@pytest.mark.parametrize("family", [0x00, 0x31])
def test_a_client_without_an_address(family: int) -> None:
    """One that the balancer can't name, or that came to it by a Unix socket, has none."""
    raw = encode_header(family=family, extra=bytes(216))
    assert parse_proxy_header(raw, BYTES_MAX) == ProxyHeader(len(raw))


def test_the_balancers_own_connection() -> None:
    """A look whether the node is well speaks for nobody; what stands in its header is skipped."""
    raw = encode_header(command=0)
    assert parse_proxy_header(raw, BYTES_MAX) == ProxyHeader(len(raw), is_local=True)
    assert parse_proxy_header(SIGNATURE + b"\x20\x00\x00\x00", BYTES_MAX) == ProxyHeader(16, is_local=True)


async def ask(edge: Edge, *parts: bytes) -> Answer:
    """The answer to what is sent in these parts."""
    async with await edge.connect() as client:
        for part in parts:
            await client.send(part)
            await trio.testing.wait_all_tasks_blocked(0.002)
        return await client.read_answer()


GET_ECHO = b"GET /echo HTTP/1.1\r\nHost: node.example\r\n\r\n"


async def test_the_named_client_is_who_asks(tmp_path: Path) -> None:
    """Its address counts, not the balancer's loopback one; header and request may come in one piece or in many."""
    async with open_edge(tmp_path, settings=BALANCED) as edge:
        refused = await ask(edge, encode_header() + GET_ECHO)
        assert refused.status == 403
        assert "198.51.100.7" in refused.json["detail"]
        raw = encode_header("127.0.0.9", "127.0.0.1") + GET_ECHO
        assert (await ask(edge, raw)).json["principal"] == "loopback"
        assert (await ask(edge, raw[:3], raw[3:20], raw[20:40], raw[40:])).json["principal"] == "loopback"
        own = SIGNATURE + b"\x20\x00\x00\x00" + GET_ECHO
        assert (await ask(edge, own)).json["principal"] == "loopback"


async def test_a_client_that_is_not_named_is_no_local_one(tmp_path: Path) -> None:
    """The balancer's own rights are no measure for a client that it doesn't name."""
    async with open_edge(tmp_path, settings=BALANCED) as edge:
        assert (await ask(edge, SIGNATURE + b"\x21\x00\x00\x00" + GET_ECHO)).status == 403


@pytest.mark.parametrize("source", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
def test_the_loopback_of_a_balancer_elsewhere(source: str) -> None:
    """Its own local clients aren't this machine's; nor does a header make a balancer here a stranger."""
    header = parse_proxy_header(encode_header(source, source), BYTES_MAX)
    assert header is not None
    there = Peer("tcp", "10.0.0.5", 1, "10.0.0.1", 7878)
    here = Peer("tcp", "127.0.0.1", 1, "127.0.0.1", 7878)
    assert client_of(there, header).address == "unknown"
    assert is_loopback_address(client_of(here, header).address)


async def test_huge_fields_behind_the_addresses(tmp_path: Path) -> None:
    """As long as they fit they are skipped, whatever they say; beyond the limit nothing is waited for."""
    async with open_edge(tmp_path, settings=BALANCED) as edge:
        most = int(Limits().proxy_header_bytes) - 16 - 12
        fields = b"\x01\xff\xff" + b"\xff" * (most - 3)  # says that it is longer than everything
        assert (await ask(edge, encode_header("127.0.0.9", "127.0.0.1", extra=fields) + GET_ECHO)).status == 200
        refused = await ask(edge, encode_header("127.0.0.9", "127.0.0.1", extra=fields + b"x")[:16])
        assert refused.status == 400
        assert edge.count("overlayd_limit_hits_total", limit="proxy_header_bytes") == 1


async def test_a_second_header_is_a_request_that_cant_be_read(tmp_path: Path) -> None:
    """A client behind the balancer can't name itself anew."""
    async with open_edge(tmp_path, settings=BALANCED) as edge:
        twice = encode_header() + encode_header("127.0.0.1", "127.0.0.1")
        assert (await ask(edge, twice + GET_ECHO)).status == 400
        assert edge.calls == []


@pytest.mark.parametrize("said", [GET_HEALTH, b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n" + GET_HEALTH, b"\0"])
async def test_a_balancer_that_sends_no_header(tmp_path: Path, said: bytes) -> None:
    """It is refused: nobody could tell whose request it is."""
    async with open_edge(tmp_path, settings=BALANCED) as edge:
        answer = await ask(edge, said)
        assert answer.status == 400
        assert "PROXY" in answer.json["detail"] or "version" in answer.json["detail"]
        assert edge.calls == []
        assert edge.count("overlayd_net_opening_failures_total", reason="proxy_header") == 1


@pytest.mark.parametrize("header", [encode_header("127.0.0.1", "127.0.0.1"), b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n"])
async def test_a_header_of_anybody_else(tmp_path: Path, header: bytes) -> None:
    """It isn't believed, it is a request that can't be read."""
    async with open_edge(tmp_path) as edge:
        assert (await ask(edge, header + GET_HEALTH)).status == 400
        assert edge.calls == []


async def test_unix_clients_send_none(tmp_path: Path) -> None:
    """The setting is about TCP."""
    async with open_edge(tmp_path, settings=BALANCED) as edge, await edge.connect_unix() as client:
        assert (await client.request("GET", "/healthz")).status == 200


async def test_a_header_has_its_time_and_size(tmp_path: Path, patient_clock: trio.testing.MockClock) -> None:
    """Half a header, and one that is too long."""
    limits = limits_with(handshake_timeout=Duration(10), proxy_header_bytes=Size(64))
    async with open_edge(tmp_path, settings=BALANCED, limits=limits) as edge:
        client = await edge.connect()
        await client.send(encode_header()[:20])
        assert (await ask(edge, encode_header(extra=bytes(100)))).status == 400
        await edge.wait_connections()
        assert edge.count("overlayd_limit_hits_total", limit="handshake_timeout") == 1
        assert edge.count("overlayd_limit_hits_total", limit="proxy_header_bytes") == 1


async def test_connections_count_for_the_client(tmp_path: Path) -> None:
    """The bound per address is about who the balancer names."""
    limits = limits_with(connections_per_address=2)
    async with open_edge(tmp_path, settings=BALANCED, limits=limits) as edge:

        async def keep(source: str) -> Answer:
            client = await edge.connect()
            await client.send(encode_header(source, "127.0.0.1") + GET_HEALTH)
            return await client.read_answer()

        statuses = [(await keep(source)).status for source in ("127.1.1.1", "127.1.1.1", "127.1.1.1", "127.1.1.2")]
        assert statuses == [200, 200, 503, 200]
        await edge.wait_until(lambda: edge.count("overlayd_net_connections_open") == 3)
        assert edge.count("overlayd_net_connections_total", family="tcp") == 4


async def test_a_header_before_tls(tmp_path: Path) -> None:
    """A balancer that passes TLS on sends its header in clear text before it."""
    listen = {"proxy_protocol": ("127.0.0.1",), "insecure": True, "deny": ("203.0.113.0/24",)}
    async with open_tls_edge(tmp_path, listen=listen) as tls:

        async def ask_as(source: str) -> Answer:
            raw = await tls.connect_raw()
            await raw.send_all(encode_header(source, "127.0.0.1"))
            context = tls.authority.client_context()
            stream = trio.SSLStream(raw, context, server_hostname="localhost", https_compatible=True)
            return await RawClient(stream).request("GET", "/echo")  # type: ignore[arg-type]

        assert (await ask_as("198.51.100.7")).json["principal"] == "open:198.51.100.7"
        with pytest.raises((EOFError, trio.BrokenResourceError)):
            await ask_as("203.0.113.5")
        assert tls.failures("denied") == 1

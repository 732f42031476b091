"""Who can reach the node: networks that may come, listeners that would stand open, and what is said about it."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from net_rig import RawClient, open_edge
from tls_authority import Authority
from tls_wire import in_clear_text

from overlayd.access.networks import Networks, parse_networks
from overlayd.model.clock import SystemClock
from overlayd.model.errors import ConfigInvalid
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.net.exposure import Credentials, describe_exposure
from overlayd.net.listeners import close_listeners, peer_of
from overlayd.net.peer_rules import PeerRules, peer_rules_of
from overlayd.net.ports import Ports
from overlayd.net.settings import ListenSettings, PlainListener, TlsListener

KEYS = Credentials(keys=2)
NETWORKS = st.ip_addresses().flatmap(
    lambda address: st.integers(0, address.max_prefixlen).map(lambda length: f"{address}/{length}")
)


def rules_of(**settings: Any) -> PeerRules:
    """The rules of a listener under these settings."""
    return peer_rules_of(ListenSettings(**settings))


def test_denial_wins() -> None:
    """A peer must be in every allow list that isn't empty and in no deny list."""
    rules = rules_of(allow=("10.0.0.0/8", "2001:db8::/32"), deny=("10.6.0.0/16",))
    assert [rules.judge(a) for a in ("10.1.1.1", "10.6.1.1", "192.0.2.1", "2001:db8::9", "::ffff:10.1.1.1")] == [
        "", "denied", "not_allowed", "", "",
    ]  # fmt: skip
    own = PlainListener(address="127.0.0.1:1", allow=("10.1.0.0/16",), deny=("10.1.2.3",))
    both = peer_rules_of(ListenSettings(allow=("10.0.0.0/8",), deny=("10.1.9.9",)), own)
    assert [both.judge(a) for a in ("10.1.1.1", "10.2.1.1", "10.1.2.3", "10.1.9.9", "11.1.1.1")] == [
        "", "not_allowed", "denied", "denied", "not_allowed",
    ]  # fmt: skip
    assert PeerRules().judge("192.0.2.1") == ""


@given(st.lists(NETWORKS, max_size=8), st.ip_addresses())
def test_sets_of_networks_agree_with_looking_one_by_one(texts: list[str], address: Any) -> None:
    """Whatever networks there are, an address is in the set when it is in one of them."""
    networks = parse_networks(texts, "x")
    mapped = getattr(address, "ipv4_mapped", None)
    plain = mapped or address
    expected = any(plain.version == one.version and plain in one for one in networks.members)
    assert (str(address) in networks) is expected


def test_what_is_no_address_is_in_no_network() -> None:
    """Names, nonsense and nothing."""
    everything = parse_networks(("0.0.0.0/0", "::/0"), "x")
    assert [text in everything for text in ("unknown", "", "1.2.3", "uid:5", "1.2.3.4", "fe80::1%eth0")] == [
        False, False, False, False, True, True,
    ]  # fmt: skip
    assert "10.0.0.1" in parse_networks(("::ffff:10.0.0.0/104",), "x")
    assert repr(Networks()) == "Networks()"


@pytest.mark.parametrize("key", ["allow", "deny", "proxy_protocol", "trusted_proxies"])
def test_what_is_no_network_is_refused(key: str) -> None:
    """With the setting's name and how to write it."""
    made = ports(**{key: ("10.0.0.0/8", "office")})
    with pytest.raises(ConfigInvalid) as caught:
        made.check()
    assert caught.value.subject == f"listen.{key}"
    assert "10.0.0" in caught.value.hint


def ports(credentials: Credentials | None = None, **settings: Any) -> Ports:
    """The ports of a node with these settings."""
    made = Ports(ListenSettings(**settings), limits=Limits(), clock=SystemClock(), metrics=Metrics())
    made.credentials = credentials or Credentials()
    return made


@in_clear_text
async def test_denied_peers_are_closed_at_once(tmp_path: Path) -> None:
    """Not a byte is exchanged; they are counted; Unix sockets aren't touched by it."""
    settings = ListenSettings(
        tcp=("127.0.0.1:0",),
        plain=(PlainListener(address="127.0.0.1:0", allow=("10.0.0.0/8",)),),
        deny=("127.0.0.0/8",),
    )
    async with open_edge(tmp_path, settings=settings) as edge:
        async with await edge.connect() as client:
            assert await client.is_closed_by_peer()
        assert edge.count("overlayd_net_denied_total", reason="denied") == 1
        assert edge.count("overlayd_net_connections_total", family="tcp") == 0
        async with await edge.connect_unix() as client:
            assert (await client.request("GET", "/healthz")).status == 200


async def test_a_listener_has_rules_of_its_own(tmp_path: Path) -> None:
    """What is shut on one is open on the other."""
    closed = PlainListener(address="127.0.0.1:0", allow=("10.0.0.0/8",))
    async with open_edge(tmp_path, settings=ListenSettings(tcp=("127.0.0.1:0",), plain=(closed,))) as edge:
        doors = [int(url.rsplit(":", 1)[1]) for url in edge.urls if url.startswith("http")]
        answered = []
        for door in doors:
            async with RawClient(await trio.open_tcp_stream("127.0.0.1", door)) as client:
                await client.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                answered.append(bool(await client.read_rest()))
        assert sorted(answered) == [False, True]
        assert edge.count("overlayd_net_denied_total", reason="not_allowed") == 1


async def test_denied_clients_of_a_proxy(tmp_path: Path) -> None:
    """A client that a trusted proxy names is kept out as if it had come by itself."""
    settings = ListenSettings(
        tcp=("127.0.0.1:0",), trusted_proxies=("127.0.0.1",), insecure=True, deny=("203.0.113.0/24",)
    )
    async with open_edge(tmp_path, settings=settings) as edge, await edge.connect() as client:
        assert (await client.request("GET", "/echo", X_Forwarded_For="198.51.100.1")).status == 200
        refused = await client.request("GET", "/echo", X_Forwarded_For="203.0.113.9")
        assert refused.status == 403
        assert "kept out" in refused.json["detail"]


EVERYWHERE = {"tcp": ("0.0.0.0:0",)}


@pytest.mark.parametrize(
    ("settings", "credentials", "words"),
    [
        (EVERYWHERE, Credentials(), "clear text, and the node has no keys"),
        (EVERYWHERE, KEYS, "in clear text"),
        (EVERYWHERE | {"allow": ("10.0.0.0/8",), "trusted_proxies": ("10.0.0.5",)}, KEYS, "in clear text"),
        (EVERYWHERE | {"trusted_proxies": ("10.0.0.5",)}, KEYS, "in clear text"),
        ({"tcp": (), "plain": (PlainListener(address="[::]:0"),)}, KEYS, "in clear text"),
    ],
)
def test_open_doors_are_refused(tmp_path: Path, settings: dict[str, Any], credentials: Credentials, words: str) -> None:
    """An address that others reach, in clear text or without keys, stops the start, and nothing stays open."""
    with pytest.raises(ConfigInvalid, match=words) as caught:
        ports(credentials, **settings).open(tmp_path)
    assert "insecure = true" in caught.value.hint
    assert not list(tmp_path.glob("*.sock"))


@pytest.mark.parametrize(
    ("settings", "credentials"),
    [
        (EVERYWHERE | {"insecure": True}, Credentials()),
        (EVERYWHERE | {"allow": ("10.0.0.5",), "trusted_proxies": ("10.0.0.0/24",)}, Credentials()),
        (EVERYWHERE | {"allow": ("10.0.0.5", "127.0.0.1"), "trusted_proxies": ("10.0.0.0/24",)}, Credentials()),
        (EVERYWHERE | {"allow": ("10.0.0.5",), "proxy_protocol": ("10.0.0.5",)}, Credentials()),
        (
            {"plain": (PlainListener(address="0.0.0.0:0", allow=("10.0.0.5",)),), "trusted_proxies": ("10.0.0.5",)},
            Credentials(),
        ),
        ({"tcp": ("127.0.0.1:0", "[::1]:0")}, Credentials()),
    ],
)
def test_doors_that_are_open_on_purpose(tmp_path: Path, settings: dict[str, Any], credentials: Credentials) -> None:
    """Said in so many words, shut to all but trusted proxies, or on loopback."""
    close_listeners(ports(credentials, **({"tcp": ()} | settings)).open(tmp_path))


@pytest.mark.parametrize(
    ("credentials", "client_ca", "is_fine"),
    [
        (Credentials(), False, False), (KEYS, False, True), (Credentials(jwt_issuers=1), False, True),
        (Credentials(has_identities=True), False, True), (Credentials(certificates=1), True, True),
        (Credentials(certificates=1), False, False), (Credentials(), True, False),
    ],
)  # fmt: skip
def test_tls_without_keys(tmp_path: Path, credentials: Credentials, client_ca: bool, is_fine: bool) -> None:
    """TLS alone tells nobody apart: somebody must be able to show who they are."""
    authority = Authority(tmp_path)
    tls = TlsListener(
        address="0.0.0.0:0", cert=str(authority.issue("node")), client_ca=str(authority.file) if client_ca else ""
    )
    made = ports(credentials, tcp=(), tls=(tls,))
    if is_fine:
        close_listeners(made.open(tmp_path))
        return
    with pytest.raises(ConfigInvalid, match="nobody could show who they are"):
        made.open(tmp_path)


@pytest.mark.parametrize(
    ("urls", "insecure", "credentials", "words"),
    [
        (["http://127.0.0.1:1"], False, Credentials(), "open to local clients only: no keys configured"),
        (["http://0.0.0.0:1"], True, Credentials(), "open to everybody who reaches it: insecure = true"),
        (["http://[::1]:1"], True, Credentials(), "open to local clients, and to whoever a proxy lets through"),
        (["https://[::]:1"], False, Credentials(keys=1, certificates=3), "asked for: 1 key, client certificates"),
        (["unix:/x"], False, Credentials(2, 2, True), "asked for: 2 keys, 2 JWT issuers, identities"),
    ],
)  # fmt: skip
def test_the_state_of_protection_in_a_line(
    urls: list[str], insecure: bool, credentials: Credentials, words: str
) -> None:
    """What the log says at start and /readyz always."""
    assert words in describe_exposure(urls, ListenSettings(insecure=insecure), credentials)


async def test_unix_peers_have_groups() -> None:
    """The kernel says a Unix peer's uid, gid and further groups, and the accepted connection knows them."""
    ours, theirs = socket.socketpair()
    with theirs:
        sock = trio.socket.from_stdlib_socket(ours)
        peer = peer_of(sock)
        sock.close()
    assert (peer.uid, peer.gid) == (os.geteuid(), os.getegid())
    assert set(peer.groups) == set(os.getgroups())


INHERIT = """
import os, sys
os.environ["LISTEN_PID"] = str(os.getpid())
from pathlib import Path
from overlayd.model.clock import SystemClock
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.net.ports import Ports
from overlayd.net.settings import ListenSettings, TlsListener
from overlayd.model.errors import ConfigInvalid
settings = ListenSettings(tls=(TlsListener(address=sys.argv[3], cert=sys.argv[2]),))
try:
    opened = Ports(settings, limits=Limits(), clock=SystemClock(), metrics=Metrics()).open(Path(sys.argv[1]))
    print(*(bound.url for bound in opened))
except ConfigInvalid as error:
    print(error.detail)
"""


@pytest.mark.parametrize("name", ["secure", "nothing"])
def test_tls_on_a_socket_of_the_service_manager(tmp_path: Path, name: str) -> None:
    """A passed socket is found by its name and speaks TLS; the other one stands in for `tcp`."""
    certificate = Authority(tmp_path).issue("node")
    with socket.create_server(("127.0.0.1", 0)) as plain, socket.create_server(("127.0.0.1", 0)) as secure:
        ends = [sock.getsockname()[1] for sock in (plain, secure)]

        def pass_on() -> None:
            fds = [os.dup(plain.fileno()), os.dup(secure.fileno())]
            for target, fd in zip((3, 4), fds, strict=True):
                os.dup2(fd, target, inheritable=True)

        done = subprocess.run(
            [sys.executable, "-c", INHERIT, str(tmp_path), str(certificate), f"fd:{name}"], capture_output=True, text=True,
            env=os.environ | {"LISTEN_FDS": "2", "LISTEN_FDNAMES": "web:secure"}, preexec_fn=pass_on, close_fds=False,
            check=True,
        )  # fmt: skip
    if name == "secure":
        assert f"http://127.0.0.1:{ends[0]} https://127.0.0.1:{ends[1]}" in done.stdout
    else:
        assert "passed no socket named 'nothing'" in done.stdout

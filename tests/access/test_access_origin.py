"""Where a request comes from: Host, Origin, Sec-Fetch-Site, forwarding headers, peers."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlayd.access import AccessRules, Peer, Principal, judge_request, require
from overlayd.access.origin import is_loopback_address, parse_trusted
from overlayd.model.errors import (
    BadRequest,
    ConfigInvalid,
    Forbidden,
    ForeignHost,
    ForeignOrigin,
    OverlaydError,
    ProxiedWithoutTrust,
)

LOOPBACK = Peer(family="tcp", address="127.0.0.1", port=5, local="127.0.0.1", local_port=7878)
REMOTE = Peer(family="tcp", address="192.0.2.7", port=5, local="192.0.2.1", local_port=7878)
RULES = AccessRules(service_uid=990, hosts=frozenset(("node.example", "alt.example:8443")))


def judge(
    *headers: tuple[str, str], peer: Peer = LOOPBACK, rules: AccessRules = RULES, method: str = "GET",
    host: str | None = "localhost:7878", is_websocket: bool = False,
) -> Principal:  # fmt: skip
    """The verdict on a request with these headers."""
    raw = [(name.lower().encode(), value.encode()) for name, value in headers]
    if host is not None:
        raw.append((b"host", host.encode()))
    return judge_request(rules, peer, method=method, headers=raw, is_websocket=is_websocket)


@pytest.mark.parametrize(
    "host",
    ["localhost", "LocalHost:7878", "localhost.:80", "a.localhost", "127.0.0.1", "127.9.9.9:1", "[::1]:7878",
     "node.example", "NODE.example:99", "alt.example:8443", None],
)  # fmt: skip
def test_own_hosts(host: str | None) -> None:
    """Loopback names and addresses, listed names, and HTTP/1.0's missing Host are ours."""
    assert judge(host=host).kind == "loopback"


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "alt.example", "alt.example:1",
             "10.0.0.1", "0.0.0.0", "[::2]", "notlocalhost", "localhost-evil"],
)  # fmt: skip
def test_foreign_hosts(host: str) -> None:
    """A name that was pointed at us from outside is refused, with what to set if it is ours."""
    with pytest.raises(ForeignHost) as caught:
        judge(host=host)
    assert "[listen] hosts" in caught.value.hint


@pytest.mark.parametrize("host", ["", "localhost:", "localhost:99999", "local host", "a/b", "a@b", "[::1"])
def test_unreadable_hosts(host: str) -> None:
    """A Host that isn't one is 400."""
    with pytest.raises(BadRequest):
        judge(host=host)


def test_own_address_as_host() -> None:
    """The address a connection was accepted on can't be rebound, so it is a good Host."""
    rules = AccessRules(service_uid=990, insecure=True)
    assert judge(peer=REMOTE, rules=rules, host="192.0.2.1:7878").kind == "open"
    with pytest.raises(ForeignHost):
        judge(peer=REMOTE, rules=rules, host="192.0.2.2:7878")


@pytest.mark.parametrize(
    ("origin", "host"),
    [("http://localhost:7878", "localhost:7878"), ("http://127.0.0.1:7878", "127.0.0.1:7878"),
     ("http://localhost", "localhost"), ("https://localhost", "localhost:443"), ("http://[::1]:7878", "[::1]:7878"),
     ("https://node.example", "localhost:7878"), ("https://alt.example:8443", "localhost:7878")],
)  # fmt: skip
def test_own_origins(origin: str, host: str) -> None:
    """A page that we served, or of a listed host, may do everything."""
    assert judge(("Origin", origin), host=host, method="POST").kind == "loopback"


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "http://localhost:3000", "https://localhost:7878.evil.example", "",
     "http://localhost:7878@evil.example", "file://", "chrome-extension://abc", "http://localhost:7878/path",
     "http://localhost:bad", "http://[::1", "https://alt.example"],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_foreign_origins(origin: str, method: str) -> None:
    """Any other Origin is refused, for reads too; `null` is nobody's."""
    with pytest.raises(ForeignOrigin):
        judge(("Origin", origin), method=method)


def test_second_origin_header_counts() -> None:
    """A foreign Origin can't hide behind one of ours."""
    with pytest.raises(ForeignOrigin):
        judge(("Origin", "http://localhost:7878"), ("Origin", "http://evil.example"))


@pytest.mark.parametrize(
    ("site", "method", "is_websocket", "is_refused"),
    [("cross-site", "GET", False, True), ("cross-site", "POST", False, True), ("same-site", "GET", False, False),
     ("same-site", "POST", False, True), ("same-site", "GET", True, True), ("same-site", "OPTIONS", False, True),
     ("same-origin", "POST", False, False), ("none", "DELETE", False, False), ("Cross-Site", "GET", False, True)],
)  # fmt: skip
def test_fetch_metadata(site: str, method: str, is_websocket: bool, is_refused: bool) -> None:
    """Cross-site requests are refused; those of a sibling site too when they change something or stay open."""
    if is_refused:
        with pytest.raises(ForeignOrigin):
            judge(("Sec-Fetch-Site", site), method=method, is_websocket=is_websocket)
    else:
        judge(("Sec-Fetch-Site", site), method=method, is_websocket=is_websocket)


@pytest.mark.parametrize(
    "header", ["Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-IP", "Via"]
)
@pytest.mark.parametrize("peer", [LOOPBACK, Peer(family="unix", uid=990)])
def test_forwarding_cancels_loopback(header: str, peer: Peer) -> None:
    """A forwarding header from a peer that isn't trusted takes every privilege away, on the Unix socket too."""
    with pytest.raises(ProxiedWithoutTrust):
        judge((header, "127.0.0.1"), peer=peer)


def _trusting(*proxies: str, insecure: bool = True) -> AccessRules:
    trusted, is_unix_trusted = parse_trusted(proxies)
    return AccessRules(service_uid=990, trusted=trusted, is_unix_trusted=is_unix_trusted, insecure=insecure)


@pytest.mark.parametrize(
    ("headers", "address"),
    [([("X-Forwarded-For", "198.51.100.9")], "198.51.100.9"),
     ([("X-Forwarded-For", "127.0.0.1, 198.51.100.9, 10.0.0.5")], "198.51.100.9"),
     ([("X-Forwarded-For", "198.51.100.1"), ("X-Forwarded-For", "198.51.100.9")], "198.51.100.9"),
     ([("X-Forwarded-For", "198.51.100.9:4711")], "198.51.100.9"),
     ([("Forwarded", 'for=127.0.0.1, for="[2001:db8::9]:4711";proto=https')], "2001:db8::9"),
     ([("Forwarded", "proto=https;For=198.51.100.9;by=10.0.0.5")], "198.51.100.9"),
     ([("X-Real-IP", "198.51.100.9"), ("X-Forwarded-For", "198.51.100.9")], "198.51.100.9"),
     ([("Forwarded", "for=_hidden")], "unknown"), ([("X-Forwarded-For", "")], "unknown")],
)  # fmt: skip
def test_trusted_proxy_names_the_client(headers: list[tuple[str, str]], address: str) -> None:
    """The nearest address that isn't a trusted proxy is the client's."""
    principal = judge(*headers, rules=_trusting("127.0.0.0/8", "10.0.0.0/8"))
    assert (principal.kind, principal.address) == ("open", address)
    assert not principal.may_create


@pytest.mark.parametrize(
    "header", [("X-Forwarded-For", "127.0.0.1"), ("Forwarded", 'for="[::1]"'), ("X-Real-IP", "::ffff:127.0.0.1")]
)
def test_the_loopback_of_another_machine_isnt_ours(header: tuple[str, str]) -> None:
    """A proxy over there may have local clients of its own; one here may, too, and those are ours."""
    with pytest.raises(Forbidden):
        judge(header, peer=REMOTE, host="192.0.2.1", rules=_trusting("192.0.2.7", insecure=False))
    opened = judge(header, peer=REMOTE, host="192.0.2.1", rules=_trusting("192.0.2.7"))
    assert (opened.kind, opened.may_create) == ("open", False)
    assert judge(header, rules=_trusting("127.0.0.0/30", insecure=False)).kind == "loopback"


@given(
    st.lists(
        st.tuples(
            st.sampled_from(("Host", "Origin", "Sec-Fetch-Site", "Forwarded", "X-Forwarded-For", "X-Real-IP", "Via")),
            st.one_of(
                st.text(st.characters(min_codepoint=1, max_codepoint=255), max_size=60),
                st.from_regex(r"(for=)?\"?\[?[0-9a-f:.]{0,20}\]?(:[0-9]{1,6})?\"?(;proto=https?)?", fullmatch=True),
                st.from_regex(r"(https?|null|tauri)(://)?[a-z0-9.\[\]:@/-]{0,30}", fullmatch=True),
                st.sampled_from(("localhost", "null", "127.0.0.1", "[::1]", "cross-site", "unknown", "*")),
            ),
        ),
        max_size=5,
    ),
    st.sampled_from(("GET", "POST")), st.booleans(), st.booleans(),
)  # fmt: skip
def test_nothing_but_refusals_comes_of_any_headers(
    headers: list[tuple[str, str]], method: str, is_websocket: bool, is_remote: bool
) -> None:
    """And from another machine nobody is ever local, whatever the headers say."""
    rules = _trusting("192.0.2.7", insecure=False)
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    peer = REMOTE if is_remote else LOOPBACK
    try:
        principal = judge_request(rules, peer, method=method, headers=raw, is_websocket=is_websocket)
    except OverlaydError:
        return
    assert not is_remote
    assert principal.kind == "loopback"


def test_contradicting_forwarding_headers() -> None:
    """A client can't choose which of a proxy's headers counts."""
    with pytest.raises(ProxiedWithoutTrust, match="different"):
        judge(("Forwarded", "for=127.0.0.1"), ("X-Forwarded-For", "198.51.100.9"), rules=_trusting("127.0.0.1"))


def test_trusted_proxy_without_keys() -> None:
    """Clients behind a trusted proxy need a key, unless the node is open on purpose."""
    with pytest.raises(Forbidden):
        judge(("X-Forwarded-For", "198.51.100.9"), rules=_trusting("127.0.0.1", insecure=False))


def test_trusted_unix_proxy() -> None:
    """`unix` makes the peers of the Unix socket proxies; one without a header speaks for itself."""
    rules = _trusting("unix")
    peer = Peer(family="unix", uid=33)
    assert judge(("X-Forwarded-For", "198.51.100.9"), peer=peer, rules=rules).kind == "open"
    assert judge(("Via", "1.1 nginx"), peer=peer, rules=rules).name == "unix:33"


@pytest.mark.parametrize(("uid", "is_all"), [(0, True), (990, True), (1000, False)])
def test_unix_peers(uid: int, is_all: bool) -> None:
    """The service's user and root may do everything over the Unix socket, others publish and read."""
    principal = judge(peer=Peer(family="unix", uid=uid), host="anything.example")
    assert (principal.name, principal.address, principal.may_create) == (f"unix:{uid}", f"uid:{uid}", True)
    for right in ("publish", "read", "subscribe"):
        require(principal, right)
    for right in ("manage", "admin"):
        if is_all:
            require(principal, right)
        else:
            with pytest.raises(Forbidden):
                require(principal, right)


def test_loopback_rights() -> None:
    """Loopback publishes, reads and subscribes; managing points to the Unix socket."""
    principal = judge()
    require(principal, "publish")
    with pytest.raises(Forbidden) as caught:
        require(principal, "manage")
    assert "overlayd.sock" in caught.value.hint


def test_remote_peers() -> None:
    """Other machines have no rights without a key; with `insecure` they have loopback's, but create no streams."""
    with pytest.raises(Forbidden):
        judge(peer=REMOTE, host="192.0.2.1")
    principal = judge(peer=REMOTE, host="192.0.2.1", rules=AccessRules(service_uid=990, insecure=True))
    assert (principal.name, principal.may_create) == ("open:192.0.2.7", False)


def test_auto_create_is_a_setting() -> None:
    """With `auto_create = false` nobody creates streams by publishing."""
    assert not judge(rules=AccessRules(service_uid=990, auto_create=False)).may_create


def test_trusted_proxies_are_checked() -> None:
    """What isn't a network is a start-up error."""
    with pytest.raises(ConfigInvalid):
        parse_trusted(("nginx.example",))


def test_mapped_addresses() -> None:
    """IPv4 inside IPv6 and scoped addresses are seen through."""
    assert is_loopback_address("::ffff:127.0.0.1")
    assert not is_loopback_address("::ffff:10.0.0.1")
    assert not is_loopback_address("fe80::1%lo")
    assert not is_loopback_address("localhost")


def test_only_our_errors() -> None:
    """Odd bytes in the headers that are looked at raise our errors only."""
    for name in ("Origin", "Sec-Fetch-Site", "Forwarded", "X-Forwarded-For", "Host"):
        for value in ("\x7f", "é" * 50, "[", "]", "::::", "http://[", ",,,", "for=", "a" * 10_000):
            with contextlib.suppress(OverlaydError):
                judge((name, value), rules=_trusting("0.0.0.0/0"), host=None)


@pytest.mark.parametrize("is_websocket", [False, True])
@pytest.mark.parametrize("site", ["cross-site", "same-site", "same-origin"])
def test_listed_pages_of_other_sites(is_websocket: bool, site: str) -> None:
    """`[listen] origins` opens HTTP and WebSocket alike to these pages, whatever the browser calls their site."""
    rules = AccessRules(service_uid=990, origins=frozenset(("https://app.example",)))
    headers = (("Origin", "https://app.example"), ("Sec-Fetch-Site", site))
    assert judge(*headers, rules=rules, method="GET" if is_websocket else "POST", is_websocket=is_websocket)
    for foreign in ("https://app.example:444", "http://app.example", "https://App.example", "null"):
        with pytest.raises(ForeignOrigin):
            judge(("Origin", foreign), ("Sec-Fetch-Site", site), rules=rules, is_websocket=is_websocket)
    with pytest.raises(ForeignOrigin):
        judge(headers[0], ("Origin", "https://evil.example"), rules=rules, is_websocket=is_websocket)

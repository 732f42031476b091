"""The guard: every address that must not be called, in every spelling, and the way around it that is configured."""

from ipaddress import IPv4Address, IPv6Address, ip_address

import chaos_sink as chaos
import pytest
from hypothesis import given
from hypothesis import strategies as st
from outbound_rig import FixedResolver, RigMaker

from overlayd.outbound import OutboundSettings, Reason
from overlayd.outbound.networks import BAD_PORTS, NetworkPolicy, parse_networks, refuse_address, refuse_port

INNER = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.100.100.200", "100.127.255.255", "127.0.0.1",
    "127.1.2.3", "127.255.255.255", "168.63.129.16", "169.254.0.1", "169.254.169.254", "169.254.170.2", "172.16.0.1",
    "172.31.255.255", "192.0.0.1", "192.0.0.192", "192.0.2.1", "192.31.196.1", "192.52.193.1", "192.88.99.1",
    "192.168.0.1", "192.168.255.255", "192.175.48.1", "198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1",
    "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::2", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:7f00:1", "::ffff:169.254.169.254", "::ffff:8.8.8.8",
    "::ffff:0:127.0.0.1", "64:ff9b::127.0.0.1", "64:ff9b::8.8.8.8", "64:ff9b:1::1", "100::1", "100:0:0:1::1",
    "2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:2::1", "2001:10::1", "2001:20::1", "2001:db8::1",
    "2002:7f00:1::", "2002:a9fe:a9fe::1", "2002:808:808::1", "2620:4f:8000::1", "3fff::1", "3fff:fff::1", "5f00::1",
    "4000::1", "8000::1", "fc00::1", "fd00::1", "fd00:ec2::254", "fd20:ce::254", "fe80::1", "febf::1", "fec0::1",
    "ff02::1", "ff0e::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "fe80::1%eth0", "2a00::1%1",
]  # fmt: skip
OUTER = ["1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.1", "100.63.255.255", "100.128.0.1", "126.255.255.255",
         "128.0.0.1", "172.15.255.255", "172.32.0.1", "192.0.1.1", "192.167.255.255", "192.169.0.1", "198.17.255.255",
         "198.20.0.1", "223.255.255.255", "2606:4700:4700::1111", "2a00:1450::1", "2001:4860:4860::8888", "2400::1"]  # fmt: skip


@pytest.mark.parametrize("text", INNER)
def test_inner_addresses_are_refused(text: str) -> None:
    """Private, loopback, link-local, metadata, shared, multicast, reserved, and IPv4 hidden in IPv6."""
    assert refuse_address(ip_address(text), NetworkPolicy())


@pytest.mark.parametrize("text", OUTER)
def test_outer_addresses_are_not(text: str) -> None:
    """The neighbors of the refused networks are anybody's."""
    assert refuse_address(ip_address(text), NetworkPolicy()) == ""


@given(st.ip_addresses(v=4))
def test_what_python_calls_private_is_refused(address: IPv4Address) -> None:
    """Whatever Python's own list says isn't global, ours refuses."""
    if not address.is_global or address.is_multicast or address.is_reserved:
        assert refuse_address(address, NetworkPolicy())


@given(st.ip_addresses(v=6))
def test_what_python_calls_private_is_refused_in_ipv6(address: IPv6Address) -> None:
    """As for IPv4. Nothing outside 2000::/3 is ever called."""
    if not address.is_global or address.is_multicast or address.is_reserved or int(address) >> 125 != 1:
        assert refuse_address(address, NetworkPolicy())


@given(st.ip_addresses(v=4), st.sampled_from(["::ffff:{}", "::{}", "64:ff9b::{}", "::ffff:0:{}"]))
def test_an_ipv4_address_inside_an_ipv6_one_is_judged_by_itself(inner: IPv4Address, form: str) -> None:
    """Even where the outer network is allowed by name, the address inside is not called unless it may be."""
    policy = NetworkPolicy(parse_networks(["::/3", "64:ff9b::/96", "::ffff:0:0/96"]))
    outer = ip_address(form.format(inner))
    if int(outer) > 1:
        assert bool(refuse_address(outer, policy)) == bool(refuse_address(inner, policy))


def test_allowed_networks_are_called() -> None:
    """`allow_private` opens what it names and nothing beside it."""
    policy = NetworkPolicy(parse_networks(["127.0.0.0/8", "fd00::/8"]))
    for text in ("127.0.0.1", "127.9.9.9", "fd12::1"):
        assert refuse_address(ip_address(text), policy) == ""
    for text in ("10.0.0.1", "::1", "fc00::1", "::ffff:127.0.0.1", "169.254.169.254"):
        assert refuse_address(ip_address(text), policy)


@pytest.mark.parametrize("text", ["localhost", "127.0.0.1/8", "10.0.0.0/33", "", "fe80::/10%eth0"])
def test_networks_that_make_no_sense_stop_the_start(text: str) -> None:
    """A mistake in `allow_private` is told instead of opening something else."""
    with pytest.raises(ValueError, match="expected networks"):
        OutboundSettings(allow_private=(text,))


def test_ports_of_other_protocols_are_refused() -> None:
    """SMTP, SSH, DNS, Redis and their like; with a list only what is on it."""
    assert {22, 23, 25, 53, 110, 143, 6379, 11211} <= BAD_PORTS
    assert not {80, 443, 3000, 8000, 8080, 8443} & BAD_PORTS
    assert refuse_port(25, NetworkPolicy())
    assert not refuse_port(8443, NetworkPolicy())
    only = NetworkPolicy(ports=(443,))
    assert refuse_port(8443, only)
    assert not refuse_port(443, only)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "[::1]", "10.1.2.3", "169.254.169.254", "[::ffff:127.0.0.1]", "[fd00::1]"]
)
async def test_inner_addresses_in_urls_are_not_connected_to(host: str, make_rig: RigMaker) -> None:
    """An address in the URL is refused like one that a name leads to."""
    assert (await make_rig(allow=()).refuse(f"http://{host}/")).reason == Reason.ADDRESS_REFUSED


async def test_names_that_lead_inside_are_refused(make_rig: RigMaker) -> None:
    """Also the machine's own names, through the system's resolver."""
    rig = make_rig(allow=())
    for name in ("localhost", "localhost.", "LOCALHOST"):
        failure = await rig.refuse(f"http://{name}:8000/")
        assert failure.reason == Reason.ADDRESS_REFUSED
        assert "allow_private" in failure.hint


async def test_of_several_addresses_only_checked_ones_are_called(make_rig: RigMaker) -> None:
    """A name with an outer and an inner address: the inner one is never connected to, not even after the outer failed."""
    rig = make_rig(allow=("127.9.9.9/32",), resolver=FixedResolver(("127.0.0.1", "127.9.9.9")))
    async with chaos.open_sink(host="127.0.0.1") as sink:
        failure = await rig.refuse(f"http://both.example:{sink.port}/")
        assert failure.reason == Reason.CONNECT_REFUSED
        assert "127.9.9.9" in failure.detail
        assert sink.connections == 0


async def test_bad_ports_are_not_connected_to(make_rig: RigMaker) -> None:
    """The port is judged before anything is looked up."""
    resolver = FixedResolver(("127.0.0.1",))
    assert (await make_rig(resolver=resolver).refuse("http://x.example:25/")).reason == Reason.PORT_REFUSED
    assert (await make_rig(resolver=resolver, ports=(443,)).refuse("http://x.example/")).reason == Reason.PORT_REFUSED
    assert not resolver.asked

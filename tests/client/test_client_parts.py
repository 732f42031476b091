"""Addresses, backoff and the mapping of errors, without any network."""

import contextlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlayd.client.address import Address
from overlayd.client.problems import error_of_code
from overlayd.client.resume import live_query
from overlayd.client.retry import Backoff, RetryPolicy, is_worth_repeating
from overlayd.model.errors import (
    ApiProblem,
    BadParameter,
    CommitFailed,
    IntakeBusy,
    NodeUnreachable,
    OverlaydError,
    StreamPaused,
    UnknownStream,
    error_classes,
)


@pytest.mark.parametrize(
    ("url", "base", "host"),
    [
        ("http://127.0.0.1:7878", "http://127.0.0.1:7878", "127.0.0.1:7878"),
        ("http://127.0.0.1:7878/", "http://127.0.0.1:7878", "127.0.0.1:7878"),
        ("http://localhost", "http://localhost", "localhost"),
        ("https://node.example", "https://node.example", "node.example"),
        ("https://node.example:8443/overlay/", "https://node.example:8443/overlay", "node.example:8443"),
        ("http://[::1]:7878", "http://[::1]:7878", "[::1]:7878"),
        ("unix:/run/overlayd.sock", "http://localhost", "localhost"),
        ("unix:data/overlayd.sock", "http://localhost", "localhost"),
    ],
)
def test_addresses_are_taken_apart(url: str, base: str, host: str) -> None:
    """Requests and Host headers follow from the address alone."""
    address = Address.parse(url)
    assert (address.base_url, address.host_header) == (base, host)


def test_a_unix_address_keeps_its_path() -> None:
    """With or without slashes behind the colon, relative or not."""
    assert Address.parse("unix:///run/o.sock").socket_path == "/run/o.sock"
    assert Address.parse("unix:/run/o.sock").socket_path == "/run/o.sock"
    assert str(Address.parse("unix:data/o.sock")) == "unix:data/o.sock"


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:7878", "ftp://x", "http://", "http://x:port", "http://user:word@x", "http://x?q", "unix:"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    """With a hint that shows the forms there are."""
    with pytest.raises(BadParameter) as caught:
        Address.parse(url)
    assert "unix:" in caught.value.hint


@given(st.text(max_size=60))
def test_parsing_an_address_raises_nothing_else(url: str) -> None:
    """Any text is an address or a BadParameter."""
    with contextlib.suppress(BadParameter):
        assert Address.parse(url).base_url


def test_pauses_grow_with_jitter_up_to_their_bound() -> None:
    """Each is drawn from the upper half of its range; a success starts over."""
    backoff = Backoff(RetryPolicy(attempts=99, first_s=1.0, max_s=8.0), random.Random(7))
    pauses = [backoff.fail() for _ in range(6)]
    for pause, bound in zip(pauses, (1, 2, 4, 8, 8, 8), strict=True):
        assert bound / 2 <= pause <= bound
    backoff.reset()
    assert backoff.fail() <= 1.0


def test_what_the_node_asks_for_is_waited_but_not_for_ever() -> None:
    """Retry-After is honored up to the policy's own bound."""
    backoff = Backoff(RetryPolicy(first_s=0.1, max_s=5.0), random.Random(7))
    assert 3.0 <= backoff.fail(3.0) <= 3.1
    assert backoff.fail(3600.0) <= 5.2


@pytest.mark.parametrize(
    ("error", "for_any", "for_repeatable"),
    [
        (NodeUnreachable("x", is_sent=False), True, True),
        (NodeUnreachable("x", is_sent=True), False, True),
        (IntakeBusy("x"), True, True),
        (CommitFailed("x"), False, True),
        (StreamPaused("x"), False, False),
        (UnknownStream("x"), False, False),
        (ApiProblem("x", given_code="y", given_status=503, is_retryable=True), False, True),
    ],
)
def test_what_is_worth_repeating(error: OverlaydError, for_any: bool, for_repeatable: bool) -> None:
    """A request that isn't repeatable goes out again only if the first one certainly did nothing."""
    assert is_worth_repeating(error, is_repeatable=False) is for_any
    assert is_worth_repeating(error, is_repeatable=True) is for_repeatable


def test_every_code_of_the_node_finds_its_class() -> None:
    """The tree and the client's mapping can't drift apart."""
    for kind in error_classes():
        if not kind.code.startswith("client."):
            assert type(error_of_code(kind.code, "x", status=kind.status, is_retryable=False)) is kind


def test_one_pattern_may_be_a_plain_string() -> None:
    """`live("weather.*")` isn't taken for its letters."""
    assert live_query("weather.*").streams == ("weather.*",)
    assert live_query(["a", "b"], types=iter(["t"])).types == ("t",)

"""URLs that are called: one strict reading."""

from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlayd.model.errors import OutboundFailure
from overlayd.outbound.url import parse_url

WIDE_127 = "\uff11\uff12\uff17"
WIDE_80 = "\uff18\uff10"
"""Full-width digits."""


@pytest.mark.parametrize(
    ("url", "scheme", "authority", "path"),
    [
        ("https://example.com", "https", "example.com", "/"),
        ("HTTPS://Example.COM:443/a?b=c", "https", "example.com", "/a?b=c"),
        ("http://example.com:80", "http", "example.com", "/"),
        ("http://example.com:8080/%7Eme", "http", "example.com:8080", "/%7Eme"),
        ("http://example.com?x", "http", "example.com", "/?x"),
        ("http://example.com./", "http", "example.com", "/"),
        ("http://192.0.2.1:81/", "http", "192.0.2.1:81", "/"),
        ("http://[2001:DB8::1]/", "http", "[2001:db8::1]", "/"),
        ("https://bücher.example/", "https", "xn--bcher-kva.example", "/"),
        ("https://BÜCHER。example/", "https", "xn--bcher-kva.example", "/"),
        ("http://a_b.example/", "http", "a_b.example", "/"),
        ("http://1password.example/", "http", "1password.example", "/"),
        ("http://127.0.0.1e0/", "http", "127.0.0.1e0", "/"),  # a number to nobody
    ],
)
def test_urls_that_are_called(url: str, scheme: str, authority: str, path: str) -> None:
    """Each has one reading: scheme, host as it stands in the Host header, what stands in the request line."""
    target = parse_url(url)
    assert (target.scheme, target.authority, target.path) == (scheme, authority, path)


@pytest.mark.parametrize(
    "host",
    [
        "2130706433", "0x7f000001", "0x7f.0.0.1", "0x7F.1", "0177.0.0.1", "017700000001", "127.1", "127.0.1", "127.0.0.01",
        "127.000.000.001", "0127.0.0.1", "0", "0.0", "0x0", "0x", "127.0.0.1.1", "256.0.0.1", "127.0.0.256", "1.2.3",
        "127.0.0.0x1", "3232235521", "00000000000000000000177.0.0.1", "4294967296", "foo.0x7f", "x.1",
        f"{WIDE_127}.0.0.0x1", "127。0。0。0x1",
    ],
)  # fmt: skip
def test_other_spellings_of_addresses_are_refused(host: str) -> None:
    """Decimal, octal, hexadecimal, short: whatever some resolver or library might take for 127.0.0.1."""
    with pytest.raises(OutboundFailure):
        parse_url(f"http://{host}/")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1.", f"{WIDE_127}.0.0.1", "①②⑦.⓪.⓪.①", "127。0。0。1"])
def test_what_maps_to_an_address_is_one(host: str) -> None:
    """A dot at the end, and digits of other scripts, don't hide an address from the check."""
    assert str(parse_url(f"http://{host}/").address) == "127.0.0.1"


@pytest.mark.parametrize(
    "url",
    [
        "", "example.com", "//example.com/", "ftp://example.com/", "file:///etc/passwd", "gopher://x/", "javascript:alert(1)",
        "http:example.com", "http:/example.com", "http:///", "http://", "http://:80/", "http://?x", "http://#x",
        "http://user@example.com/", "http://user:password@example.com/", "http://127.0.0.1:80@example.com/",
        "http://example.com@127.0.0.1/", "http://@example.com/", "http://example.com#@127.0.0.1/", "http://example.com/#a",
        "http://example.com\\@127.0.0.1/", "http://127.0.0.1\\.example.com/", "http:\\\\example.com/",
        "http://exa mple.com/", "http://example.com/a b", "http://example.com/\r\nHost: x", "http://example.com/\t",
        " http://example.com/", "http://example.com/ ", "http://example.com/\x00", "http://ex\x00ample.com/", "http://\u00a0/",
        "http://example.com:0/", "http://example.com:65536/", "http://example.com:99999999999/", "http://example.com:/",
        "http://example.com:80a/", "http://example.com:-1/", f"http://example.com:{WIDE_80}/", "http://example.com:80:90/",
        "http://.example.com/", "http://example..com/", "http://example.com../", "http://./", "http://-/", "http://-a.com/",
        "http://a-.com/", "http://a.com-/", f"http://{'a' * 64}.com/", f"http://{'a.' * 127}com/", "http://*.example.com/",
        "http://%31%32%37.0.0.1/", "http://example.com%00/", "http://exa%6dple.com/", "http://example.com%2f@x/",
        "http://[::1/", "http://::1/", "http://[::1]x/", "http://[]/", "http://[fe80::1%25eth0]/", "http://[fe80::1%eth0]/",
        "http://[127.0.0.1]/", "http://[v1.x]/", "http://[::1]:x/", "http://[[::1]]/", "http://[1:2:3:4:5:6:7:8:9]/",
        "http://example.com/é", "http://example.com/?q=ü", "http://example.com/%", "http://example.com/%zz",
        "http://xn--/", "http://\ud800.example/", "http://a\u200db.example/", "http://\u202e.example/", "http://☃.例え\u3000/",
        "http://example.com/" + "a" * 2048,
    ],
)  # fmt: skip
def test_urls_that_are_not_called(url: str) -> None:
    """Other schemes, userinfo, fragments, backslashes, blanks, broken hosts, ports, escapes, and what is too long."""
    with pytest.raises(OutboundFailure) as caught:
        parse_url(url)
    assert caught.value.reason == "url.invalid"
    assert "password" not in caught.value.detail or "user name" in caught.value.detail


def test_words_about_a_url_hold_no_secrets() -> None:
    """What is told about a bad URL repeats neither path nor query nor userinfo."""
    for url in ("https://me:hunter2@example.com/", "https://example.com/hunter2 x", "https://example.com/?k=hunter2#f"):
        with pytest.raises(OutboundFailure) as caught:
            parse_url(url)
        assert "hunter2" not in f"{caught.value!r} {caught.value.detail} {caught.value.hint}"
    assert parse_url("https://example.com:444/hunter2?k=hunter2").origin == "https://example.com:444"


@given(st.text(max_size=60) | st.from_regex(r"https?://[a-z0-9.\[\]:@%\\#?/-]{0,40}", fullmatch=True))
def test_reading_a_url_ends_in_a_target_or_a_refusal(text: str) -> None:
    """Nothing else comes out, and what comes out is what Python's own parser reads, too."""
    try:
        target = parse_url(text)
    except OutboundFailure:
        return
    assert target.scheme in ("http", "https")
    assert 1 <= target.port <= 65_535
    assert target.path.startswith("/")
    assert target.path.isascii()
    assert not set(target.path) & set(" \r\n\t\\#")
    again = parse_url(f"{target.scheme}://{target.authority}{target.path}")
    assert again == target
    if text.isascii():
        split = urlsplit(text)
        assert (split.hostname or "").rstrip(".") == target.host or target.address is not None
        assert split.username is None

"""Numbers, times and names at and beyond their ends, on the routes that keep what they are told."""

from collections.abc import Iterator

import httpx
import pytest
from node_process import Node

OUTSIDE = ("9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59")


@pytest.fixture(scope="module")
def admin(node: Node) -> Iterator[httpx.Client]:
    """A client that may do everything."""
    transport = httpx.HTTPTransport(uds=str(node.directory / "overlayd.sock"))
    with httpx.Client(transport=transport, base_url="http://localhost", timeout=60) as client:
        yield client


@pytest.mark.parametrize("number", [(1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_holds_end_where_sequences_do(admin: httpx.Client, number: int) -> None:
    """A range that no stream can have is the client's mistake, and holds nothing."""
    admin.put("/v1/streams/held", json={})
    for body in ({"to": number, "reason": "r"}, {"from": number, "reason": "r"}):
        assert admin.post("/v1/streams/held/holds", json=body).status_code == 422
    assert admin.get("/v1/streams/held/holds").json() == {"holds": []}


def test_the_largest_hold_is_kept(admin: httpx.Client) -> None:
    """The last sequence that can be named reads back, and isn't taken for an open end."""
    admin.put("/v1/streams/largest", json={})
    body = {"from": 1, "to": (1 << 63) - 2, "reason": "r"}
    hold = admin.post("/v1/streams/largest/holds", json=body).json()
    assert hold["to"] == body["to"]
    assert admin.delete(f"/v1/streams/largest/holds/{hold['id']}").status_code == 204


def test_a_hold_has_one_name(admin: httpx.Client) -> None:
    """Other digits for the same number name no hold."""
    admin.put("/v1/streams/digits", json={})
    id = admin.post("/v1/streams/digits/holds", json={"reason": "r"}).json()["id"]
    other = "".join(chr(0x0660 + int(digit)) for digit in str(id))
    assert admin.delete(f"/v1/streams/digits/holds/{other}").status_code == 404
    assert admin.delete(f"/v1/streams/digits/holds/{id}").status_code == 204


@pytest.mark.parametrize("until", OUTSIDE)
def test_a_consent_ends_at_a_time_that_can_be_told(admin: httpx.Client, until: str) -> None:
    """Nothing is recorded that would fail every later look at the subject."""
    answer = admin.put("/v1/subjects/odd/consent", json={"purpose": "p", "granted": True, "until": until})
    assert answer.status_code == 400, answer.text
    assert admin.get("/v1/subjects/odd/consent").json() == {"consents": []}


@pytest.mark.parametrize("expires", OUTSIDE)
def test_a_key_ends_at_a_time_that_can_be_told(admin: httpx.Client, expires: str) -> None:
    """The same of keys."""
    answer = admin.post("/v1/keys", json={"scopes": ["read"], "expires_at": expires})
    assert answer.status_code == 400, answer.text


def test_subjects_that_are_no_text_are_nobody(admin: httpx.Client) -> None:
    """Bytes that aren't UTF-8 would all be the same subject: consent of one would be everybody's."""
    given = {"purpose": "p", "granted": True}
    assert admin.put("/v1/subjects/%ff/consent", json=given).status_code == 400
    assert admin.get("/v1/subjects/%fe/consent").status_code == 400
    assert admin.get("/v1/subjects/%fe").status_code == 400


def test_the_first_moment_is_an_end_too(admin: httpx.Client) -> None:
    """1970 is long over; it isn't the 0 that stands for "never" where ends are kept."""
    first = "1970-01-01T00:00:00Z"
    made = admin.post("/v1/keys", json={"scopes": ["read"], "expires_at": first})
    assert made.status_code == 400, made.text
    key = admin.post("/v1/keys", json={"scopes": ["read"], "expires_at": "2999-01-01T00:00:00Z"}).json()["id"]
    assert admin.patch(f"/v1/keys/{key}", json={"expires_at": first}).status_code == 400
    admin.delete(f"/v1/keys/{key}")
    consent = admin.put("/v1/subjects/first/consent", json={"purpose": "p", "granted": True, "until": first})
    assert consent.json()["until"].startswith("1970-01-01T00:00:00")

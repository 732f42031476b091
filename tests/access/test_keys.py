"""Keys in memory: found by their secrets, ended at once; their texts and hashes."""

import re
from typing import Any

import msgspec
import pytest
from access_rig import NOW_US, record_of
from hypothesis import given
from hypothesis import strategies as st

from overlayd.access.key_records import SecretRecord
from overlayd.access.keys import KeyBook
from overlayd.access.roles import BUILT_IN, RoleBook
from overlayd.access.scopes import RIGHTS
from overlayd.access.secret_text import (
    digest_of,
    draw_key,
    draw_ticket,
    format_digest,
    holds_key,
    is_key,
    is_ticket,
    parse_digest,
    shown_prefix,
)
from overlayd.access.settings import RoleSettings
from overlayd.model.clock import Entropy
from overlayd.model.errors import BadParameter, ConfigInvalid


def replace_secrets(record: Any, *secrets: SecretRecord, **members: Any) -> Any:
    """The record with other secrets."""
    return msgspec.structs.replace(record, secrets=secrets, **members)


@pytest.mark.parametrize("kind", ["ovl", "ap"])
def test_a_drawn_key_has_its_form(kind: Any) -> None:
    """A kind, and 24 bytes in base64url."""
    secret = draw_key(kind, Entropy())
    assert re.fullmatch(rf"{kind}_live_[A-Za-z0-9_-]{{32}}", secret.text)
    assert is_key(secret.text)
    assert holds_key(f"/x/{secret.text}?")
    assert not is_ticket(secret.text)
    assert secret.prefix == shown_prefix(secret.text) == secret.text[: len(f"{kind}_live_") + 6]
    assert secret.text not in repr(secret)
    assert parse_digest(format_digest(secret.digest)) == digest_of(secret.text)


def test_a_ticket_isnt_a_key() -> None:
    """Each is taken only where it belongs."""
    text = draw_ticket(Entropy()).text
    assert is_ticket(text)
    assert not is_key(text)
    assert not holds_key(text)


@given(st.text(max_size=80))
def test_what_isnt_a_digest_is_refused_without_repeating_it(text: str) -> None:
    """Somebody may have written the key itself there."""
    if re.fullmatch(r"sha256:[0-9a-f]{64}", text.strip()):
        return
    with pytest.raises(BadParameter) as refused:
        parse_digest(text)
    assert len(text) < 8 or text not in refused.value.detail + refused.value.hint


def test_a_key_is_found_by_its_secret() -> None:
    """And nothing else is."""
    book = KeyBook(RoleBook())
    secret = draw_key("ovl", Entropy())
    book.put(record_of("k1", secret, "publish:a"))
    found = book.find(secret.text)
    assert found is not None
    principal = found.key.principal(found.secret, "192.0.2.9", may_create=False)
    assert (principal.name, principal.owner, principal.kind) == ("key:k1", "k1", "key")
    assert book.find(secret.text[:-1] + ("A" if secret.text[-1] != "A" else "B")) is None
    assert book.find("") is None
    assert book.has_living


def test_revoking_ends_what_was_let_in() -> None:
    """At once, and whoever keeps sessions is told."""
    told: list[int] = []
    book = KeyBook(RoleBook(), lambda: told.append(1))
    secret = draw_key("ovl", Entropy())
    key = book.put(record_of("k1", secret))
    standing = key.standings[secret.digest]
    book.remove("k1")
    book.remove("k1")
    assert (standing.ended, len(told)) == ("revoked", 1)
    assert book.find(secret.text) is None
    assert not book.has_living
    assert (len(book), book.count_living(), list(book)) == (0, 0, [])


def test_rotation_keeps_the_old_secret_for_its_grace() -> None:
    """What came in by it goes on until then."""
    book = KeyBook(RoleBook())
    old, new = draw_key("ovl", Entropy()), draw_key("ovl", Entropy())
    record = record_of("k1", old)
    first = book.put(record).standings[old.digest]
    end_us = NOW_US + 60_000_000
    kept = SecretRecord(old.digest, old.prefix, NOW_US, end_us)
    book.put(replace_secrets(record, SecretRecord(new.digest, new.prefix, NOW_US), kept))
    assert book.find(old.text) is not None
    assert book.find(new.text) is not None
    assert first.ended == ""
    assert book.end_expired(end_us - 1) == end_us
    assert book.end_expired(end_us) is None
    assert first.ended == "expired"
    assert book.find(old.text) is None
    assert book.find(new.text) is not None
    assert book.count_living() == 1


def test_rotation_without_grace_revokes() -> None:
    """The old secret isn't there any more."""
    book = KeyBook(RoleBook())
    old, new = draw_key("ovl", Entropy()), draw_key("ovl", Entropy())
    record = record_of("k1", old)
    standing = book.put(record).standings[old.digest]
    book.put(replace_secrets(record, SecretRecord(new.digest, new.prefix, NOW_US)))
    assert standing.ended == "revoked"
    assert book.find(old.text) is None


def test_other_rights_end_what_was_let_in_with_the_old_ones() -> None:
    """It may come again, with those that count now."""
    book = KeyBook(RoleBook())
    secret = draw_key("ovl", Entropy())
    record = record_of("k1", secret, "read")
    standing = book.put(record).standings[secret.digest]
    key = book.put(msgspec.structs.replace(record, scopes=("read:a",)))
    assert standing.ended == "changed"
    assert key.standings[secret.digest].ended == ""


def test_an_expired_key_stays_in_the_list() -> None:
    """Without a secret that counts."""
    book = KeyBook(RoleBook())
    secret = draw_key("ovl", Entropy())
    key = book.put(record_of("k1", secret, expires_us=NOW_US + 5))
    assert book.end_expired(NOW_US + 4) == NOW_US + 5
    assert book.end_expired(NOW_US + 5) is None
    assert book.find(secret.text) is None
    assert (len(book), book.count_living(), key.standings) == (1, 0, {})


def test_roles_are_scopes_by_a_name() -> None:
    """Built in, declared, or declared in the place of a built-in one."""
    book = RoleBook([RoleSettings("station", ("publish:weather.*",)), RoleSettings("producer", ("publish:a",))])
    assert {str(scope) for scope in book.scopes_of(["read:x"], ["station", "gone"])} == {"read:x", "publish:weather.*"}
    assert {str(scope) for scope in book.scopes_of([], ["producer"])} == {"publish:a"}
    assert {scope.right for scope in BUILT_IN["admin"]} == set(RIGHTS)
    book.check(["station", "admin"])
    with pytest.raises(BadParameter, match="no role"):
        book.check(["nosuch"])


def test_settings_of_roles_are_checked() -> None:
    """Where they are written, and where they are put together."""
    with pytest.raises(ValueError, match="not a scope"):
        RoleSettings("a", ("fly",))
    with pytest.raises(ValueError, match="not a name"):
        RoleSettings("Ä", ())
    role = msgspec.structs.force_setattr
    broken = RoleSettings("a", ())
    role(broken, "scopes", ("fly",))
    with pytest.raises(ConfigInvalid):
        RoleBook([broken])


def test_a_hundred_thousand_keys_dont_slow_a_look_up() -> None:
    """A look-up takes as many steps whatever the number; the benchmark says how long they take."""
    book = KeyBook(RoleBook())
    secrets = [draw_key("ovl", Entropy()) for _ in range(2000)]
    for number, secret in enumerate(secrets):
        book.put(record_of(f"k{number}", secret, "publish:a.*"))
    assert len({id(key.grants) for key in book}) == 1
    assert all((found := book.find(secret.text)) and found.key.record.id == f"k{n}" for n, secret in enumerate(secrets))

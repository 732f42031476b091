"""Where keys may lie, as the settings say it: files, credentials, URIs of tokens. Nothing of a secret is ever repeated."""

import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlayd.model.clock import Entropy
from overlayd.model.errors import ConfigInvalid, LogInconsistent, SignerUnavailable
from overlayd.signers import NodeCheckpointKeys, NodeKeySettings, open_curve_key
from overlayd.signers.pins import pin_reader
from overlayd.signers.pkcs11_uri import parse_token_uri
from overlayd.signers.source import parse_source, read_secret_source
from overlayd.storage.key_files import SeedKey

SECRET = bytes(range(100, 132))
URI = "pkcs11:token=a;object=b?module-path=/lib/x.so"


def private(path: Path, content: bytes, mode: int = 0o600) -> Path:
    """A file as a key should lie."""
    path.write_bytes(content)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("content", [SECRET, SECRET.hex().encode(), SECRET.hex().upper().encode() + b"\n"])
def test_a_file_and_a_credential_hold_bytes_or_hex(tmp_path: Path, content: bytes) -> None:
    """Both forms, relative to the data directory, absolute, or from the service manager."""
    file = private(tmp_path / "k", content)
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    for text in ("file:k", f"file:{file}", "credential:k"):
        assert read_secret_source(parse_source("node.wallet_key", text), tmp_path, environ) == SECRET


@pytest.mark.parametrize(
    "content", [b"", SECRET + b"x", SECRET.hex().encode() + b"ff", b"canary-canary-canary", b"k" * 9000]
)
def test_anything_else_is_refused_without_repeating_it(tmp_path: Path, content: bytes) -> None:
    """Too short, too long, no hex: the error names the place, not the content."""
    private(tmp_path / "k", content)
    with pytest.raises(ConfigInvalid) as refusal:
        read_secret_source(parse_source("node.wallet_key", "file:k"), tmp_path, {})
    assert "canary" not in f"{refusal.value!r}{refusal.value.hint}"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o611, 0o620])
def test_a_file_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    """Whatever they may do with it. The service manager guards credentials by itself."""
    private(tmp_path / "k", SECRET, mode)
    with pytest.raises(ConfigInvalid, match="others may use"):
        read_secret_source(parse_source("node.wallet_key", "file:k"), tmp_path, {})
    read_secret_source(
        parse_source("node.wallet_key", "credential:k"), tmp_path, {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    )


def test_a_pipe_doesnt_hold_the_start_up(tmp_path: Path) -> None:
    """What isn't a file is refused instead of waited for."""
    os.mkfifo(tmp_path / "k", 0o600)
    with pytest.raises(ConfigInvalid):
        read_secret_source(parse_source("node.wallet_key", "file:k"), tmp_path, {})


def test_a_credential_that_isnt_there_is_told(tmp_path: Path) -> None:
    """With and without a service manager."""
    source = parse_source("node.wallet_key", "credential:k")
    with pytest.raises(ConfigInvalid, match="there are no credentials"):
        read_secret_source(source, tmp_path, {})
    with pytest.raises(ConfigInvalid, match="no such credential"):
        read_secret_source(source, tmp_path, {"CREDENTIALS_DIRECTORY": str(tmp_path)})


@pytest.mark.parametrize(
    "text",
    [
        "", "file", "file:", "credential:", "credential:../k", "credential:a/b", "key:abc", "/etc/key", "pkcs11:",
        "pkcs11:token=a;object=b", "pkcs11:token=a?module-path=/x", "pkcs11:object=b?module-path=/x",
        f"{URI}&pin-value=canary-1234", f"{URI}&pin-source=/etc/pin", f"{URI}&pin-source=|ask",
        "pkcs11:token=a;object=b?module-path=x.so", "pkcs11:token=a;token=b;object=c?module-path=/x",
        "pkcs11:token=a;object=b;color=red?module-path=/x", "pkcs11:token=a;object=b;type=public?module-path=/x",
        "pkcs11:token=%zz;object=b?module-path=/x", "pkcs11:token=%ff;object=b?module-path=/x", URI + "&x=" + "y" * 3000,
    ],
)  # fmt: skip
def test_a_place_that_is_none_is_refused(text: str) -> None:
    """With the setting's name, and without a PIN that stood there."""
    with pytest.raises(ConfigInvalid, match=r"node\.checkpoint_key") as refusal:
        parse_source("node.checkpoint_key", text)
    assert "canary" not in f"{refusal.value} {refusal.value.hint}"


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    """Nothing else comes out of it."""
    for whole in (text, "pkcs11:" + text, URI + text):
        with contextlib.suppress(ConfigInvalid):
            parse_source("node.checkpoint_key", whole)


def test_a_uri_is_read() -> None:
    """Names, numbers and escapes of RFC 7512."""
    uri = parse_token_uri(
        "x", "pkcs11:token=my%20token;serial=ab12;id=%01%ff;object=log;type=private"
        "?module-path=/usr/lib/x.so&pin-source=credential:pin",
    )  # fmt: skip
    assert (uri.token, uri.serial, uri.id, uri.label) == ("my token", b"ab12", b"\x01\xff", "log")
    assert (uri.module_path, uri.pin_source) == ("/usr/lib/x.so", "credential:pin")


def test_a_pin_is_read_when_it_is_needed(tmp_path: Path) -> None:
    """From a private file, without its line end; none where the settings name none."""
    read = pin_reader(parse_source("x", f"{URI}&pin-source=file:pin"), tmp_path, {})
    with pytest.raises(ConfigInvalid, match="no such file"):
        read()
    private(tmp_path / "pin", b"1234\n")
    assert read() == "1234"
    private(tmp_path / "pin", b"1234\n", 0o644)
    with pytest.raises(ConfigInvalid, match="others may use"):
        read()
    assert pin_reader(parse_source("x", URI), tmp_path, {})() == ""


def test_checkpoint_keys_are_found_by_what_they_are(tmp_path: Path) -> None:
    """The present key and the next one, in files outside of the data directory; and the directory's own ones behind."""
    (tmp_path / "keys").mkdir()
    private(tmp_path / "a", b"a" * 32)
    private(tmp_path / "b", b"b" * 32)
    first, other = SeedKey(b"a" * 32).public_key, SeedKey(b"b" * 32).public_key
    keys = NodeCheckpointKeys(
        NodeKeySettings(checkpoint_key="file:a", checkpoint_key_next="file:b"), tmp_path, {}, Entropy()
    )
    assert keys.first().public_key == first
    assert keys.find(other).public_key == other
    assert keys.next({first}).public_key == other
    own = keys.next({first, other}).public_key
    assert keys.find(own).public_key == own
    assert [path.name for path in (tmp_path / "keys").iterdir()] == ["log-3.ed25519"]
    with pytest.raises(LogInconsistent):
        keys.find(bytes(32))


def test_a_configured_file_isnt_drawn(tmp_path: Path) -> None:
    """Who names a file has one: drawing another would begin another log."""
    keys = NodeCheckpointKeys(NodeKeySettings(checkpoint_key="file:gone"), tmp_path, {}, Entropy())
    with pytest.raises(ConfigInvalid, match="no such file"):
        keys.first()


def test_a_token_without_its_library_is_told(tmp_path: Path) -> None:
    """At the first use, by the library's path."""
    pytest.importorskip("pkcs11")
    keys = NodeCheckpointKeys(NodeKeySettings(checkpoint_key=URI), tmp_path, {}, Entropy())
    with pytest.raises((ConfigInvalid, SignerUnavailable), match=r"/lib/x\.so"):
        keys.first()


def test_curve_keys_are_drawn_only_where_none_is_named(tmp_path: Path) -> None:
    """In the data directory, once; what is named must be there and be a key."""

    def open_key(text: str) -> bytes:
        return open_curve_key(
            "node.wallet_key", text, file_name="wallet.key", directory=tmp_path, environ={}, entropy=Entropy(),
            must_derive=True,
        ).public_key  # fmt: skip

    (tmp_path / "keys").mkdir()
    assert open_key("") == open_key("") == open_key("file:keys/wallet.key")
    with pytest.raises(ConfigInvalid, match="no such file"):
        open_key("file:gone")
    private(tmp_path / "zero", bytes(32))
    with pytest.raises(ConfigInvalid, match="no private key"):
        open_key("file:zero")

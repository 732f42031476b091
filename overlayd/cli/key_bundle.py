"""`overlayd keys export` and `keys import`: the private keys of a node in one file, sealed with a passphrase.

Backups hold none of them, so that a stolen backup signs nothing and opens no secret; without them a restored log can't go
on. ChaCha20-Poly1305 under a key that scrypt derives from the passphrase.
"""

import os
import re
from pathlib import Path

import click
import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from overlayd.cli.target import data_directory
from overlayd.model.clock import Entropy
from overlayd.model.errors import ConfigInvalid
from overlayd.storage import files

FORMAT = "overlayd/keys/1"
BUNDLE_BYTES_MAX = 1 << 20
PASSPHRASE_CHARS_MIN = 12
SCRYPT_N, SCRYPT_R, SCRYPT_P = 1 << 16, 8, 1
"""64 MiB and about 0.2 s a guess."""
_SCRYPT_N_MAX = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)


class _Bundle(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: str
    scrypt_n: int
    salt: bytes
    nonce: bytes
    sealed: bytes


class _Contents(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    files: dict[str, bytes]


@click.command("export")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--data", metavar="DIR", help="Data directory [default: $STATE_DIRECTORY or ./overlayd-data]")
@click.option("--passphrase-file", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="Where the passphrase stands, instead of being asked for")  # fmt: skip
def export(file: Path, data: str | None, passphrase_file: Path | None) -> None:
    """Save the node's private keys to FILE, sealed with a passphrase. An existing FILE is never overwritten.

    Who has it and the passphrase can sign as this node. Keys on tokens and in credentials aren't files of DIR/keys, and
    aren't in it. Works beside a running node.
    """
    place = data_directory(data, os.environ) / "keys"
    found = _read_keys(place)
    if not found:
        raise ConfigInvalid(f"there are no keys in {place}", subject=str(place))
    sealed = _seal(found, read_passphrase(passphrase_file, is_new=True), Entropy())
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise ConfigInvalid(f"{file} exists and isn't overwritten", subject=str(file)) from error
    with open(descriptor, "wb") as target:
        target.write(sealed)
        target.flush()
        os.fsync(target.fileno())
    click.echo(f"wrote {len(found)} keys to {file}: {', '.join(sorted(found))}")


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--data", metavar="DIR", help="Data directory [default: $STATE_DIRECTORY or ./overlayd-data]")
@click.option("--passphrase-file", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="Where the passphrase stands, instead of being asked for")  # fmt: skip
def import_(file: Path, data: str | None, passphrase_file: Path | None) -> None:
    """Put exported keys into a data directory, before its node is started. A key that is there already must be equal."""
    directory = data_directory(data, os.environ)
    files.make_directory(directory)
    lock = files.DirectoryLock(directory)
    try:
        written = import_keys(file, directory, read_passphrase(passphrase_file, is_new=False))
    finally:
        lock.release()
    click.echo(f"wrote {len(written)} keys: {', '.join(written) or 'all were there'}")


def import_keys(file: Path, directory: Path, passphrase: bytes) -> list[str]:
    """The names of the files that were written. Raises ConfigInvalid when it can't be opened, or another key is there."""
    contents = _open(file, passphrase)
    place = directory / "keys"
    present = _read_keys(place)
    for name, content in contents.items():
        if not _NAME.fullmatch(name):
            raise ConfigInvalid(f"{file} names a file that no key has", subject=str(file))
        if present.get(name, content) != content:
            raise ConfigInvalid(
                f"{place / name} is another key than the one in {file}", subject=str(place / name),
                hint="move the directory's keys away first, if they aren't needed any more",
            )  # fmt: skip
    missing = sorted(contents.keys() - present.keys())
    for name in missing:
        files.replace_file(place / name, contents[name])
    return missing


def read_passphrase(file: Path | None, *, is_new: bool) -> bytes:
    """From a file's first line, or asked for; twice where it is new. Raises ConfigInvalid."""
    if file is not None:
        text = file.read_text("utf-8").split("\n")[0].strip()
    else:
        text = click.prompt("Passphrase", hide_input=True, confirmation_prompt=is_new, err=True)
    if is_new and len(text) < PASSPHRASE_CHARS_MIN:
        raise ConfigInvalid(f"a passphrase has at least {PASSPHRASE_CHARS_MIN} characters", subject="passphrase")
    return text.encode()


def _read_keys(place: Path) -> dict[str, bytes]:
    """What lies in the directory of keys, by name."""
    try:
        return {
            path.name: files.read_file(path)
            for path in sorted(place.iterdir())
            if path.is_file() and not path.name.endswith(".new")
        }
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigInvalid(f"{error.filename or place}: {error.strerror}", subject=str(place)) from error


def _seal(found: dict[str, bytes], passphrase: bytes, entropy: Entropy) -> bytes:
    salt, nonce = entropy.draw(16), entropy.draw(12)
    cipher = ChaCha20Poly1305(_derive(passphrase, salt, SCRYPT_N))
    sealed = cipher.encrypt(nonce, msgspec.json.encode(_Contents(found)), FORMAT.encode())
    return msgspec.json.format(msgspec.json.encode(_Bundle(FORMAT, SCRYPT_N, salt, nonce, sealed)), indent=1) + b"\n"


def _open(file: Path, passphrase: bytes) -> dict[str, bytes]:
    try:
        if file.stat().st_size > BUNDLE_BYTES_MAX:
            raise ConfigInvalid(f"{file} is too long for keys", subject=str(file))
        bundle = msgspec.json.decode(files.read_file(file), type=_Bundle)
        is_known = bundle.format == FORMAT and len(bundle.nonce) == 12
        if not is_known or bundle.scrypt_n not in (1 << bits for bits in range(12, _SCRYPT_N_MAX.bit_length())):
            raise ConfigInvalid(f"{file} isn't a file of keys that this version knows", subject=str(file))
        cipher = ChaCha20Poly1305(_derive(passphrase, bundle.salt, bundle.scrypt_n))
        return msgspec.json.decode(cipher.decrypt(bundle.nonce, bundle.sealed, FORMAT.encode()), type=_Contents).files
    except msgspec.DecodeError as error:
        raise ConfigInvalid(f"{file} isn't a file of keys", subject=str(file)) from error
    except InvalidTag as error:
        raise ConfigInvalid(
            f"{file}: the passphrase is another one, or the file was altered", subject=str(file)
        ) from error


def _derive(passphrase: bytes, salt: bytes, n: int) -> bytes:
    return Scrypt(salt=salt, length=32, n=n, r=SCRYPT_R, p=SCRYPT_P).derive(passphrase)


__all__ = ["export", "import_", "import_keys", "read_passphrase"]

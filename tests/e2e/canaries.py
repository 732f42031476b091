"""Secrets that are planted everywhere in a run of the node, and where they may be found afterwards: nowhere.

To plant more, draw a canary with `Canaries.draw` and send or configure it in tests/e2e/test_canaries.py; everything that
the run prints, answers or serves is searched for all of them.
"""

import base64
import urllib.parse
from pathlib import Path


class Canaries:
    """Planted secrets by name, and everything that was looked at."""

    def __init__(self) -> None:
        self.planted: dict[str, str] = {}
        self.planted_bytes: dict[str, bytes] = {}
        self.shown_once: dict[str, set[str]] = {}
        self.seen: list[tuple[str, bytes]] = []

    def plant(self, name: str, secret: str, *, may_be_in: tuple[str, ...] = ()) -> str:
        """A secret that must not come back, but for the outputs whose business it is to show it once."""
        assert len(secret) >= 16, "a short text could stand somewhere by chance"
        self.planted[name] = secret
        self.shown_once[name] = set(may_be_in)
        return secret

    def plant_bytes(self, name: str, secret: bytes, *, may_be_in: tuple[str, ...] = ()) -> bytes:
        """The same for one that isn't text, such as a private key."""
        assert len(secret) >= 16
        self.planted_bytes[name] = secret
        self.shown_once[name] = set(may_be_in)
        return secret

    def look_at(self, what: str, content: bytes | str) -> None:
        """An output of the run."""
        self.seen.append((what, content.encode() if isinstance(content, str) else content))

    def look_at_files(self, what: str, directory: Path, *, but: tuple[str, ...] = ()) -> None:
        """Every file of a directory, but those that hold a secret on purpose."""
        for path in sorted(directory.rglob("*")):
            if path.is_file() and path.name not in but:
                self.look_at(f"{what} {path.name}", path.read_bytes())

    def found(self) -> list[str]:
        """Which secret stands where, as it is, cut short, or in an encoding."""
        out = []
        for name, secret in self.planted.items():
            core = secret.rpartition("_live_")[2] if "_live_" in secret else secret
            forms = {
                secret,
                core,
                core[:20],
                urllib.parse.quote(secret),
                base64.b64encode(secret.encode()).decode(),
                secret.encode().hex(),
            }
            out += self._found(name, [form.encode() for form in forms])
        for name, octets in self.planted_bytes.items():
            unpadded = base64.b64encode(octets[: len(octets) // 3 * 3])
            forms_of = [octets, octets.hex().encode(), octets.hex().upper().encode(), unpadded]
            forms_of += [repr(octets)[2:-1].encode(), base64.urlsafe_b64encode(octets[: len(octets) // 3 * 3])]
            out += self._found(name, forms_of)
        return sorted(set(out))

    def _found(self, name: str, forms: list[bytes]) -> list[str]:
        return [
            f"{name} in {what}"
            for what, content in self.seen
            if what not in self.shown_once[name] and any(form in content for form in forms)
        ]

"""PKCS#11 URIs (RFC 7512), as far as a key and its PIN need them. Sans-IO."""

import re
from urllib.parse import unquote, unquote_to_bytes

import msgspec

from overlayd.model.errors import ConfigInvalid

URI_CHARS_MAX = 2048
_ATTRIBUTE = re.compile(r"([a-z][a-z-]*)=((?:[A-Za-z0-9\-._~:\[\]@!$'()*+,=&/]|%[0-9A-Fa-f]{2})*)", re.ASCII)
_QUERY = re.compile(r"([a-z][a-z-]*)=((?:[A-Za-z0-9\-._~:\[\]@!$'()*+,=/?|;]|%[0-9A-Fa-f]{2})*)", re.ASCII)
_PATH_NAMES = frozenset({"token", "serial", "object", "id", "type"})
_QUERY_NAMES = frozenset({"module-path", "pin-source"})


class TokenUri(msgspec.Struct, frozen=True):
    """A key on a token. `pin_source` is `file:PATH` or `credential:NAME`, "" where the token asks for none."""

    module_path: str
    token: str = ""
    serial: bytes = b""
    label: str = ""
    id: bytes = b""
    pin_source: str = ""

    def __str__(self) -> str:
        key = f"object {self.label!r}" if self.label else f"id {self.id.hex()}"
        return f"token {self.token or self.serial.decode('utf-8', 'replace')!r}, {key}"


def parse_token_uri(setting: str, text: str) -> TokenUri:
    """Reads `pkcs11:token=…;object=…?module-path=…&pin-source=…`. Raises ConfigInvalid, without repeating a PIN."""
    if len(text) > URI_CHARS_MAX:
        raise _refusal(setting, f"it has over {URI_CHARS_MAX} characters")
    path, _, query = text.removeprefix("pkcs11:").partition("?")
    parts = _members(setting, path, ";", _ATTRIBUTE, _PATH_NAMES)
    more = _members(setting, query, "&", _QUERY, _QUERY_NAMES)
    if parts.get("type", "private") != "private":
        raise _refusal(setting, "type can only be private")
    uri = TokenUri(
        module_path=unquote(more.get("module-path", "")), token=_text(setting, parts.get("token", "")),
        serial=unquote_to_bytes(parts.get("serial", "")), label=_text(setting, parts.get("object", "")),
        id=unquote_to_bytes(parts.get("id", "")), pin_source=_text(setting, more.get("pin-source", "")),
    )  # fmt: skip
    if not uri.module_path.startswith("/"):
        raise _refusal(setting, "module-path must be the absolute path of the token's library")
    if not (uri.token or uri.serial) or not (uri.label or uri.id):
        raise _refusal(setting, "it must name a token (token or serial) and a key on it (object or id)")
    if uri.pin_source and uri.pin_source.partition(":")[0] not in ("file", "credential"):
        raise _refusal(setting, "pin-source is file:PATH or credential:NAME")
    return uri


def _members(
    setting: str, text: str, separator: str, form: re.Pattern[str], names: frozenset[str]
) -> dict[str, str]:  # fmt: skip
    found: dict[str, str] = {}
    for part in text.split(separator) if text else ():
        name, _, _ = part.partition("=")
        if name == "pin-value":
            raise _refusal(
                setting, "a PIN doesn't belong into the settings; give pin-source=file:PATH or credential:NAME"
            )
        if form.fullmatch(part) is None or name not in names:
            raise _refusal(setting, f"{name[:40]!r} isn't understood; there are {', '.join(sorted(names))}")
        if name in found:
            raise _refusal(setting, f"{name} stands there twice")
        found[name] = part.partition("=")[2]
    return found


def _text(setting: str, quoted: str) -> str:
    try:
        return unquote_to_bytes(quoted).decode()
    except UnicodeDecodeError as err:
        raise _refusal(setting, "a name isn't UTF-8") from err


def _refusal(setting: str, detail: str) -> ConfigInvalid:
    return ConfigInvalid(
        f"{setting}: {detail}", subject=setting,
        hint="pkcs11:token=NAME;object=LABEL?module-path=/usr/lib/…so&pin-source=file:/path",
    )  # fmt: skip

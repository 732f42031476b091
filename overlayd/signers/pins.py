"""PINs of tokens, read from files or credentials whenever a session is opened. Blocking."""

from collections.abc import Callable, Mapping
from pathlib import Path

from overlayd.model.errors import ConfigInvalid
from overlayd.signers.source import KeySource, parse_source, read_private

PIN_CHARS_MAX = 255


def pin_reader(source: KeySource, directory: Path, environ: Mapping[str, str]) -> Callable[[], str]:
    """What gives the PIN of a token's key; "" where the settings name no place for one. It may raise ConfigInvalid."""
    assert source.token is not None
    if not source.token.pin_source:
        return str
    place = parse_source(source.setting, source.token.pin_source)

    def read() -> str:
        try:
            pin = read_private(place, directory, environ).decode().rstrip("\r\n")
        except FileNotFoundError as err:
            raise ConfigInvalid(f"{place}: there is no such file", subject=place.setting) from err
        except UnicodeDecodeError as err:
            raise ConfigInvalid(f"{place}: the PIN isn't text", subject=place.setting) from err
        if not 0 < len(pin) <= PIN_CHARS_MAX:
            raise ConfigInvalid(f"{place}: a PIN has 1 to {PIN_CHARS_MAX} characters", subject=place.setting)
        return pin

    return read

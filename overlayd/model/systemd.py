"""What systemd tells a service and wants to hear from it, without its library.

sd_notify(3), sd_watchdog_enabled(3). Everything does nothing when systemd isn't there.
"""

import contextlib
import socket
from collections.abc import Mapping

_STATUS_CHARS_MAX = 500


def watchdog_interval_s(environ: Mapping[str, str], pid: int) -> float | None:
    """How often to say that we are alive: half of WatchdogSec; None when systemd doesn't ask."""
    text = environ.get("WATCHDOG_USEC", "")
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        return None
    if environ.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None
    return int(text) / 2_000_000


class Notifier:
    """Tells systemd how the service is. Never blocks and never raises: a lost notice isn't worth a stop."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.is_ready = False
        path = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path

    @property
    def is_wanted(self) -> bool:
        """Whether systemd listens."""
        return self._address[:1] in ("/", "\0") and len(self._address) > 1

    def ready(self, status: str = "") -> bool:
        """Start-up is over: packets are taken."""
        self.is_ready = True
        return self._send(f"READY=1\n{_status_line(status)}")

    def starting(self, status: str, seconds: float) -> bool:
        """Start-up goes on; it may take longer than the unit says if this is said again within so many seconds."""
        return self._send(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}\n{_status_line(status)}")

    def reloading(self, monotonic_us: int) -> bool:
        """The configuration is being read anew; `ready` says when that is over. `monotonic_us`: CLOCK_MONOTONIC."""
        return self._send(f"RELOADING=1\nMONOTONIC_USEC={monotonic_us}\n")

    def stopping(self, status: str = "") -> bool:
        """Shutdown has begun."""
        return self._send(f"STOPPING=1\n{_status_line(status)}")

    def status(self, text: str) -> bool:
        """One line for `systemctl status`."""
        return self._send(_status_line(text))

    def alive(self) -> bool:
        """Feeds the watchdog."""
        return self._send("WATCHDOG=1\n")

    def _send(self, message: str) -> bool:
        """Whether the notice was handed over."""
        if not self.is_wanted:
            return False
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto(message.encode(), self._address)
            return True
        return False


def _status_line(text: str) -> str:
    line = " ".join(text.split())[:_STATUS_CHARS_MAX]
    return f"STATUS={line}\n" if line else ""

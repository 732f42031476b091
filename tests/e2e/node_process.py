"""A real node as a process, started and watched by tests."""

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

START_S = 60.0
STOP_S = 40.0


def listen_tls(certificate: Path, **settings: str) -> str:
    """Configuration of a TLS listener on a free loopback port. The certificate is for localhost."""
    lines = ["[[listen.tls]]", 'address = "127.0.0.1:0"', f'cert = "{certificate}"']
    return "\n".join([*lines, *(f'{name} = "{value}"' for name, value in settings.items())]) + "\n"


class Node:
    """`overlayd run` on a directory and a free loopback port. `output` is all it printed, by line.

    `config` is put into a file beside the directory; `listen_tls` is one for a listener that speaks TLS, whose address
    is then in `tls_url`.
    """

    def __init__(self, directory: Path, *arguments: str, config: str = "") -> None:
        self.directory = directory
        self.tls_url = ""
        self._is_secure = "[[listen.tls]]" in config
        if config:
            file = directory.parent / f"{directory.name}.toml"
            file.write_text(config)
            arguments = (*arguments, "--config", str(file))
        self.output: list[str] = []
        self.url = ""
        self._changed = threading.Condition()
        self._is_over = False
        self.process = subprocess.Popen(
            [sys.executable, "-m", "overlayd", "run", "--data", str(directory), "--listen", "127.0.0.1:0", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.output.append(line)
                if found := re.search(r"listening on (http://\S+)", line):
                    self.url = found[1]
                if found := re.search(r"listening on (https://\S+)", line):
                    self.tls_url = found[1].replace("127.0.0.1", "localhost")
                self._changed.notify_all()
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def wait_for(self, text: str, seconds: float = START_S) -> None:
        """Until a line holds the text."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_over or any(text in line for line in self.output), seconds)
        assert any(text in line for line in self.output), f"no {text!r} in:\n" + "".join(self.output[-40:])

    def wait_ready(self) -> "Node":
        """Until it takes packets. One that doesn't come so far is ended."""
        last = "listening on https://" if self._is_secure else "listening on http://"  # those with TLS come last
        try:
            self.wait_for(last)
        except BaseException:
            self.process.kill()
            self.stop()
            raise
        return self

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            code = self.process.wait(STOP_S)
        finally:
            self.process.kill()
            self._reader.join(STOP_S)
            assert self.process.stdout is not None
            self.process.stdout.close()
        return code

"""A page with the browser's own EventSource, in headless Chromium, shows a conversation arriving."""

import http.client
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import trio
from agentpipe_node import CONFIG, KEY, Api
from live_sockets import open_socket
from node_process import Node
from real_waiting import PATIENCE_S, pause_async

EXAMPLES = Path(__file__).parents[2] / "examples"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and writes nothing."""

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@contextmanager
def served(directory: Path) -> Iterator[str]:
    """The directory at an origin of its own."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(directory))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def browsing(url: str, profile: Path) -> Iterator[Path]:
    """A headless browser on a page; gives its profile's directory."""
    assert BROWSER is not None
    command = [
        BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-background-networking", "--remote-debugging-port=0", f"--user-data-dir={profile}", url,
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield profile
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


async def debugger_of(profile: Path, page: str) -> str:
    """Where the page's debugger listens."""
    while True:
        try:
            port = int((profile / "DevToolsActivePort").read_text().splitlines()[0])
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/json")
            targets = json.loads(connection.getresponse().read())
            connection.close()
            found = [one["webSocketDebuggerUrl"] for one in targets if one["url"].startswith(page)]
            if found:
                return str(found[0]).replace("ws://", "http://")
        except (FileNotFoundError, IndexError, ValueError, ConnectionRefusedError):
            pass
        await pause_async(0.1)


async def wait_for(socket: Any, text: str) -> str:
    """The page's text, once it holds this."""
    for number in range(1, 10_000):
        asked = {"id": number, "method": "Runtime.evaluate", "params": {"expression": "document.body.innerText"}}
        await socket.send_message(json.dumps(asked))
        answer = json.loads(await socket.get_message())
        shown = str(answer.get("result", {}).get("result", {}).get("value", ""))
        if text in shown:
            return shown
        await pause_async(0.1)
    raise AssertionError(text)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here: apt-get install chromium")
async def test_a_page_shows_a_conversation_arriving(tmp_path: Path) -> None:
    """From its own origin, with a ticket; what was said before it came first, then what is said now."""
    with served(EXAMPLES) as origin:
        node = Node(tmp_path / "data", config=f'[listen]\norigins = ["{origin}"]\n{CONFIG}')
        try:
            api = Api(node.wait_ready())
            api.begin("shown")
            page = f"{origin}/agentpipe_live.html"
            where = f"{page}#{urlencode({'url': node.url, 'key': KEY})}"
            with browsing(where, tmp_path / "profile") as profile, trio.fail_after(PATIENCE_S):
                async with open_socket(await debugger_of(profile, page), {}) as socket:
                    await wait_for(socket, "Subscribed to all events")
                    assert "shown begins: Hello agents" in await wait_for(socket, "begins")
                    await trio.to_thread.run_sync(api.say, "shown", 1, "arriving <b>now</b>")
                    assert "shown Claude: arriving <b>now</b>" in await wait_for(socket, "arriving")
                    end = partial(api.ingest, "conversation.completed", conversation_id="shown", status="completed")
                    await trio.to_thread.run_sync(end)
                    await wait_for(socket, "shown ends: completed")
        finally:
            assert node.stop() == 0, "".join(node.output[-40:])

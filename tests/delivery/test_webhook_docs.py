"""What docs/webhooks.md tells receivers is true, and its code runs."""

import base64
import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from overlayd.delivery.webhooks.signing import standard_signature
from overlayd.outbound import Reason

DOCUMENT = (Path(__file__).parents[2] / "docs" / "webhooks.md").read_text("utf-8")
OWN_WORDS = {"body.too_long", "secret.sealed"}
"""Reasons that the webhooks add to those of the client."""
KEY = bytes(range(32))
SECRET = "whsec_" + base64.b64encode(KEY).decode()


def block_of(language: str) -> str:
    """The document's code in a language."""
    found = re.findall(rf"```{language}\n(.*?)```", DOCUMENT, re.DOTALL)
    assert len(found) == 1
    return str(found[0])


def request(body: bytes, *, shift_s: int = 0, keys: tuple[bytes, ...] = (KEY,)) -> dict[str, str]:
    """Headers of a request as the node makes them."""
    timestamp = int(time.time()) + shift_s  # noqa: TID251 - the receiver's own clock
    signature = standard_signature(keys, "msg_a_1", timestamp, body)
    return {"webhook-id": "msg_a_1", "webhook-timestamp": str(timestamp), "webhook-signature": signature}


def test_every_reason_is_explained() -> None:
    """The table lists each word that a failed attempt's reason can begin with, and no others."""
    rows = re.findall(r"^\| (`[a-z_.]+`(?:, `[a-z_.]+`)*) \| [A-Z]", DOCUMENT, re.MULTILINE)
    words = {word for row in rows for word in re.findall(r"`([a-z_]+\.[a-z_]+)`", row)}
    assert words == {str(reason) for reason in Reason} | OWN_WORDS


def test_the_python_code_verifies() -> None:
    """Good requests pass, also while a secret rotates; changed, old and foreign ones don't."""
    names: dict[str, Any] = {}
    exec(compile(block_of("python"), "docs/webhooks.md", "exec"), names)
    verify = names["verify"]
    body = '{"é": 1}'.encode()
    verify(SECRET, request(body), body)
    verify(SECRET, request(body, keys=(bytes(32), KEY)), body)
    for headers, given in (
        (request(body), body + b" "), (request(body, shift_s=-400), body), (request(body, keys=(bytes(32),)), body),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"too old|not signed"):
            verify(SECRET, headers, given)


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no Node.js here")
def test_the_javascript_code_verifies() -> None:
    """The same in Node.js."""
    body = '{"é": 1}'.encode()
    cases = [
        (request(body), body, True), (request(body, keys=(bytes(32), KEY)), body, True), (request(body), body + b" ", False),
        (request(body, shift_s=-400), body, False), (request(body, keys=(bytes(32),)), body, False),
    ]  # fmt: skip
    rows = [[headers, base64.b64encode(given).decode()] for headers, given, _ in cases]
    program = (
        block_of("javascript")
        + f"""
      const results = {json.dumps(rows)}.map(([headers, body]) => {{
        try {{ verify({json.dumps(SECRET)}, headers, Buffer.from(body, "base64")); return true; }} catch (error) {{ return false; }}
      }});
      console.log(JSON.stringify(results));"""
    )
    done = subprocess.run(["node", "-e", program], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout) == [expected for _, _, expected in cases]

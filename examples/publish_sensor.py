"""Publishes this machine's load average every few seconds, safely over restarts of the node.

python examples/publish_sensor.py http://127.0.0.1:7878 host.load
"""

import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from overlayd.client import RetryPolicy, SyncClient

PERIOD_S = 5.0


def main(url: str, stream: str, count: int = 0) -> None:
    """Goes on for ever, or for `count` packets."""
    patient = RetryPolicy(attempts=1000, max_s=30.0)
    sent = 0
    with SyncClient(url, retry=patient) as client:
        while not count or sent < count:
            taken_at = datetime.now(UTC).isoformat()  # noqa: TID251 - a program of its own
            one, five, fifteen = Path("/proc/loadavg").read_text().split()[:3]
            # The id makes it safe to send the packet again when the connection breaks.
            receipt = client.publish(
                stream,
                {"load_1m": float(one), "load_5m": float(five), "load_15m": float(fifteen)},
                id=f"load {taken_at}",
                time=taken_at,
            )
            sent += 1
            print(f"{receipt.stream} {receipt.sequence} durable at {receipt.appended_at}")
            if sent != count:
                time.sleep(PERIOD_S)


if __name__ == "__main__":
    main(*sys.argv[1:3], *(int(word) for word in sys.argv[3:4]))

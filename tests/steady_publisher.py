"""Publishes one packet after the other, each on a connection of its own, until its standard input ends.

Run: python steady_publisher.py HOST PORT STREAM. Prints how many were acknowledged and how many connections were
refused, as JSON. A connection that broke is tried again with the same id, as a client would.
"""

import http.client
import json
import sys
import threading


def publish(host: str, port: int, path: str, body: str) -> int:
    """One try; the status. Raises OSError or HTTPException when the connection fails."""
    connection = http.client.HTTPConnection(host, port, timeout=60)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        return connection.getresponse().status
    finally:
        connection.close()


def main(host: str, port: int, stream: str) -> dict[str, int]:
    """Runs until nobody wants more."""
    is_over = threading.Event()

    def wait_for_end() -> None:
        sys.stdin.read()
        is_over.set()

    threading.Thread(target=wait_for_end, daemon=True).start()
    counts = {"acknowledged": 0, "refused": 0, "broken": 0, "unavailable": 0}
    while not is_over.is_set():
        body = json.dumps({"id": f"p{counts['acknowledged']}", "data": {"n": counts["acknowledged"]}})
        try:
            status = publish(host, port, f"/v1/streams/{stream}/packets", body)
        except ConnectionRefusedError:
            counts["refused"] += 1
        except (OSError, http.client.HTTPException):
            counts["broken"] += 1
        else:
            counts["acknowledged" if status in (200, 201) else "unavailable"] += 1
    return counts


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]), sys.argv[3])))

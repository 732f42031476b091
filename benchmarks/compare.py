"""The node beside its peers: the same work on each in turn, in one run, with medians over interleaved rounds.

Run: .venv/bin/python -m benchmarks.compare publish|batch|fanout|replay|sessions|fairness|busy|growth|deliveries|commitments|confirmed|access|all   (or `make bench`)
"""

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

from benchmarks.machine import describe_machine
from benchmarks.peers import start_mosquitto, start_nats, start_nchan, start_redis
from benchmarks.report import RESULTS, head_lines, row_lines, write_results
from benchmarks.rows_access import gate_rows, mutual_rows
from benchmarks.rows_beside import fairness_rows
from benchmarks.rows_busy import busy_rows
from benchmarks.rows_commitments import commitment_rows
from benchmarks.rows_confirmed import confirmed_rows
from benchmarks.rows_deliveries import delivery_rows
from benchmarks.rows_growth import growth_rows
from benchmarks.rows_live import fan_out_rows, replay_row, session_rows
from benchmarks.rows_publish import Publishing
from benchmarks.samples import Outcome, Row, run_row
from benchmarks.servers import Missing, Server, start_overlayd
from benchmarks.sqlite_limit import SqliteLimit

PARTS = (
    "publish",
    "batch",
    "fanout",
    "replay",
    "sessions",
    "fairness",
    "busy",
    "growth",
    "deliveries",
    "commitments",
    "confirmed",
    "access",
)
Starter = Callable[[Path], Server]
PEERS: dict[str, Starter] = {
    "nats": partial(start_nats, is_synced=True),
    "nats-default": partial(start_nats, is_synced=False),
    "redis": start_redis,
    "nchan": start_nchan,
    "mosquitto": start_mosquitto,
}
"""Each peer by the name it has on the command line. Starting may raise Missing."""


class Bench:
    """One run: what was asked for, where its data lies, and what came of it."""

    def __init__(self, given: argparse.Namespace, directory: Path) -> None:
        self._given, self._directory = given, directory
        self.servers: dict[str, Server] = {}
        self.skipped: dict[str, str] = {}
        self.outcomes: list[Outcome] = []

    def _start(self, stack: ExitStack, part: str, wanted: Sequence[str]) -> tuple[Server, dict[str, Server]]:
        """A node and those of the peers that are asked for and installed; all end with the stack."""
        place = self._directory / part
        node = start_overlayd(place / "overlayd")
        stack.callback(node.stop)
        self.servers.setdefault("overlayd", node)
        peers = {}
        for key in wanted:
            if key not in self._given.peers:
                continue
            try:
                peers[key] = PEERS[key](place / key)
            except Missing as reason:
                self.skipped[key] = str(reason)
                continue
            stack.callback(peers[key].stop)
            self.servers.setdefault(key, peers[key])
        return node, peers

    def _limit(self, stack: ExitStack, part: str, node: Server) -> SqliteLimit | None:
        """Bare SQLite, unless it wasn't asked for."""
        if "sqlite" not in self._given.peers:
            return None
        return stack.enter_context(closing(SqliteLimit(node, self._directory / part / "sqlite")))

    def _rows(self, stack: ExitStack, part: str) -> list[Row]:
        given = self._given
        if part in ("publish", "batch"):
            node, peers = self._start(stack, part, tuple(PEERS))
            publishing = Publishing(node, peers, self._limit(stack, part, node))
            return publishing.publish_rows(given.readers, given.clients) if part == "publish" \
                else publishing.batch_rows(given.readers)  # fmt: skip
        if part == "fanout":
            node, peers = self._start(stack, part, ("nchan",))
            return fan_out_rows(node, peers.get("nchan"), given.subscribers)
        if part == "replay":
            node, _ = self._start(stack, part, ())
            return [replay_row(node, self._limit(stack, part, node), given.replay)]
        if part == "fairness":
            return fairness_rows(self._start(stack, part, ())[0])
        if part == "sessions":
            return self._session_rows(stack)
        return self._rows_alone(stack, part)

    def _rows_alone(self, stack: ExitStack, part: str) -> list[Row]:
        """Rows that no peer has, on nodes and logs of their own."""
        given, place = self._given, self._directory / part
        if part == "busy":
            return busy_rows()
        if part == "commitments":
            return commitment_rows()
        if part == "confirmed":
            return confirmed_rows(place, given.confirmed, given.stored)
        if part == "access":
            return [*gate_rows(given.keys), *mutual_rows(stack)]
        place.mkdir()
        if part == "deliveries":
            return list(delivery_rows(stack, place, given.deliveries, given.undelivered, given.subscriptions))
        assert part == "growth"
        return growth_rows(stack, place, given.streams, given.entries)

    def _session_rows(self, stack: ExitStack) -> list[Row]:
        """Servers are started anew for each turn, so the first ones only show what is installed."""
        _, peers = self._start(stack, "sessions", ("nchan",))
        starters: dict[str, Starter] = {"overlayd": start_overlayd}
        starters |= {peer.name: PEERS[key] for key, peer in peers.items()}
        stack.close()
        return session_rows(starters, self._directory / "sessions", self._given.sessions)

    def run(self, parts: Sequence[str]) -> Iterator[Outcome]:
        """Row by row."""
        given = self._given
        for part in parts:
            with ExitStack() as stack:
                for row in self._rows(stack, part):
                    if given.only not in row.title:
                        continue
                    is_long = part in ("sessions", "replay", "deliveries") or row.title.startswith("opening")
                    warm_up_s = 0.0 if is_long else given.warm_up
                    outcome = run_row(row, given.rounds, given.seconds, warm_up_s)
                    self.outcomes.append(outcome)
                    yield outcome


def numbers(text: str) -> list[int]:
    """Whole numbers, separated by commas."""
    return [int(part) for part in text.split(",")]


def read_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(prog="benchmarks.compare", description=__doc__)
    parser.add_argument("part", choices=(*PARTS, "all"))
    parser.add_argument("--seconds", type=float, default=4.0, help="of one turn (wrk: whole ones)")
    parser.add_argument("--warm-up", type=float, default=1.0, help="seconds of a turn before the first round; 0: none")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=numbers, default=[1, 64, 256], help="of the single-packet rows")
    parser.add_argument("--readers", type=int, default=100, help="live readers beside the publish rows, as used")
    parser.add_argument(
        "--subscribers", type=numbers, default=[1000], help="of the fan-out rows, for example 1000,9000"
    )
    parser.add_argument("--replay", type=int, default=100_000, help="packets to replay")
    parser.add_argument("--streams", type=int, default=5000, help="of the row with many streams")
    parser.add_argument("--entries", type=int, default=200_000, help="in the log of the growth rows")
    parser.add_argument("--deliveries", type=int, default=6000, help="in a turn of the rows of webhooks")
    parser.add_argument("--undelivered", type=int, default=100_000, help="packets before the restart with webhooks")
    parser.add_argument("--subscriptions", type=int, default=1000, help="of the row with bad endpoints")
    parser.add_argument("--keys", type=int, default=100_000, help="of the rows of access")
    parser.add_argument(
        "--confirmed", type=int, default=10_000, help="packets of one block, in the rows of confirmation"
    )
    parser.add_argument(
        "--stored", type=int, default=1_000_000, help="packets that were confirmed before, in those rows"
    )
    parser.add_argument("--sessions", type=int, default=2000, help="idle sessions")
    parser.add_argument("--peers", type=lambda text: text.split(","), default=[*PEERS, "sqlite"],
                        help=f"of {', '.join((*PEERS, 'sqlite'))}; an empty text: none")  # fmt: skip
    parser.add_argument("--only", default="", help="rows whose title holds this text")
    parser.add_argument("--data", type=Path, help="directory on the disk to measure (default: the temporary one)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="directory for the results")
    parser.add_argument("--name", default="", help="of the result files (default: the part)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] = ()) -> list[Outcome]:
    """Runs, prints as it goes, and writes the results."""
    given = read_arguments(arguments or sys.argv[1:])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    parts = PARTS if given.part == "all" else (given.part,)
    if given.data is not None:
        given.data.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="overlayd-bench-", dir=given.data) as place:
        machine = describe_machine(Path(place), min(1.0, given.seconds))
        bench = Bench(given, Path(place))
        blocks: list[str] = []
        for outcome in bench.run(parts):
            blocks += row_lines(outcome)
            print("\n".join(row_lines(outcome)), flush=True)
    run = f"{given.rounds} rounds of {given.seconds:g} s, medians; ratio: how many times better overlayd is"
    lines = head_lines(machine, list(bench.servers.values()), list(bench.skipped.values()), run) + blocks
    print("\n" + "\n".join(lines))
    servers = [
        {"name": one.name, "version": one.version, "durability": one.durability} for one in bench.servers.values()
    ]
    head: dict[str, object] = {
        "machine": machine, "rounds": given.rounds, "seconds": given.seconds, "servers": servers,
        "skipped": list(bench.skipped.values()), "open_files": os.sysconf("SC_OPEN_MAX"),
    }  # fmt: skip
    for path in write_results(given.name or given.part, head, lines, bench.outcomes, given.results):
        print(f"wrote {path}")
    return bench.outcomes


if __name__ == "__main__":
    main()

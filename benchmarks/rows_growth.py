"""Rows of growth: many streams, a long log, and opening it again after a clean stop and after none."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from benchmarks.generator import generate
from benchmarks.outside import NATIVE, load_http
from benchmarks.protocols import BadAnswer, HttpConversation
from benchmarks.samples import Contender, Row, Sample
from benchmarks.servers import Server, restart_overlayd, start_overlayd
from benchmarks.work import Work

MANY_STREAMS = 5000
FILLING = Work(2, "array", 1000, streams=100)
FILL_TURN_S = 2.0
SILENT_TURNS_MAX = 10
"""Turns of filling without an answer, one after the other: a machine busy with other work may take that long for a sync."""
CLIENTS = 64


def publish(server: Server, work: Work, seconds: float) -> Sample:
    """The work, with what the server's processor time was for each packet."""
    sample = load_http(server, work, NATIVE, seconds)
    cost = (sample.server_share or 0.0) / sample.values["rate"] * 1e6 if sample.values["rate"] else 0.0
    note = f"{sample.note}, {cost:.1f} us of the server a packet"
    return Sample(sample.values, sample.generator_share, sample.server_share, sample.errors, note)


def stream_row(node: Server, streams: int = MANY_STREAMS) -> Row:
    """Packets to thousands of streams by chance, beside the same to one."""
    many, one = Work(CLIENTS, streams=streams), Work(CLIENTS, streams=1)
    contenders = (
        Contender(f"{streams:,} streams", lambda seconds: publish(node, many, seconds)),
        Contender("one stream", lambda seconds: publish(node, one, seconds)),
    )
    return Row("growth", f"single packets, {CLIENTS} clients, {streams:,} streams", "rate", contenders,
               "random UUID ids; to reach: no slower a packet than one stream")  # fmt: skip


def fill(server: Server, entries: int) -> None:
    """Appends about so many packets with ids, in arrays of a thousand."""
    done, silent = 0.0, 0
    while done < entries:
        try:
            sample = generate(server, FILLING, lambda _: HttpConversation(FILLING, NATIVE), FILL_TURN_S)
        except BadAnswer:
            silent += 1
            if silent > SILENT_TURNS_MAX or server.process.poll() is not None:
                raise
            continue
        silent = 0
        done += sample.values["rate"] * FILL_TURN_S


def entry_rows(full: Server, empty: Server, entries: int) -> list[Row]:
    """The first rows on a log that is filled here, beside an empty one."""
    fill(full, entries)
    rows = []
    for work, title in (
        (Work(1), "single packets, 1 client"), (Work(CLIENTS), f"single packets, {CLIENTS} clients"),
        (Work(4, "array", 100), "arrays of 100, 4 clients"),
    ):  # fmt: skip
        contenders = tuple(
            Contender(name, lambda seconds, server=server, work=work: publish(server, work, seconds))  # type: ignore[misc]
            for name, server in ((f"{entries:,} entries and ids", full), ("empty log", empty))
        )
        rows.append(Row("growth", f"{title}, {entries:,} entries in the log", "rate", contenders,
                        "to reach: at least 80 % of the empty log's"))  # fmt: skip
    return rows


def opening_row(full: Server, entries: int) -> Row:
    """From starting the program to its listening, on the log of the rows before, whose server ends with the first turn."""
    directory = full.directory

    def open_again(end: Callable[[Server], None]) -> Sample:
        full.stop()
        server, _ = restart_overlayd(directory)
        fill(server, FILLING.batch)  # so that there is something to be found again
        end(server)
        again, seconds = restart_overlayd(directory)
        again.stop()
        return Sample({"p50_ms": seconds * 1e3})

    def kill(server: Server) -> None:
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()

    contenders = (
        Contender("after a clean stop", lambda _: open_again(Server.stop)),
        Contender("after kill -9", lambda _: open_again(kill)),
    )
    return Row("growth", f"opening a log of {entries:,} entries", "p50_ms", contenders,
               "from starting the program to its first connection; to reach: 2 s, 5 s after kill -9")  # fmt: skip


def growth_rows(stack: ExitStack, place: Path, streams: int, entries: int) -> list[Row]:
    """All of them. Rows are made as they are measured, because a log of millions of entries takes minutes to fill."""
    if shutil.disk_usage(place.parent).free < entries * 2000:
        raise OSError(f"{entries:,} entries need {entries * 2000 / 2**30:.1f} GiB of disk in {place}")
    full, empty = start_overlayd(place / "full"), start_overlayd(place / "empty")
    stack.callback(full.stop)
    stack.callback(empty.stop)
    began = time.perf_counter()
    rows = [stream_row(empty, streams), *entry_rows(full, empty, entries)]
    print(f"filled in {time.perf_counter() - began:.0f} s", flush=True)
    return [*rows, opening_row(full, entries)]

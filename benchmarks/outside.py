"""Load generators of others: wrk for HTTP and redis-benchmark. Both are in C, so they hold a figure down later than ours."""

import json
import os
import secrets
import shutil
import subprocess
import time
from pathlib import Path

from benchmarks.generator import generate
from benchmarks.protocols import BadAnswer, HttpConversation
from benchmarks.samples import Sample
from benchmarks.servers import Server
from benchmarks.work import AFTER, BEFORE, STREAMS, Maker, Work, stream_prefix

SCRIPT = Path(__file__).with_name("publish.lua")
REDIS_FIRST_REQUESTS = 300
REDIS_CELLS = ("rps", "mean", "min", "p50", "p95", "p99", "max")
NATIVE, NCHAN = "/v1/streams/%s/packets", "/pub/%s"


def run_measured(command: list[str], environment: dict[str, str]) -> tuple[str, float]:
    """A generator's output and the share of one processor that it used. Raises BadAnswer if it fails."""
    process = subprocess.Popen(  # noqa: S603 - a generator's own command
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ | environment
    )
    began = time.perf_counter()
    assert process.stdout is not None
    said = process.stdout.read().decode(errors="replace")
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stdout.close()
    if process.returncode:
        raise BadAnswer(f"{command[0]}: {said[-1000:]}")
    return said, (usage.ru_utime + usage.ru_stime) / (time.perf_counter() - began)


def load_http(server: Server, work: Work, path: str, seconds: float) -> Sample:
    """By wrk where it is installed, else by our own generator."""
    wrk = shutil.which("wrk")
    if wrk is None:
        return generate(server, work, lambda number: HttpConversation(work, path), seconds)
    environment = {
        "BENCH_STREAMS": str(work.streams), "BENCH_BATCH": str(work.batch), "BENCH_IDS": "1" if work.has_ids else "0",
        "BENCH_FORM": work.form if path == NATIVE else "payload", "BENCH_PATH": path, "BENCH_TYPE": work.content_type,
        "BENCH_PREFIX": stream_prefix(work), "BENCH_SEED": str(secrets.randbits(50)),
        "BENCH_BEFORE": BEFORE.decode(), "BENCH_AFTER": AFTER.decode(),
    }  # fmt: skip
    whole_s = max(1, round(seconds))
    command = [wrk, "-t1", f"-c{work.clients}", f"-d{whole_s}s", "--timeout", "10s", "-s", str(SCRIPT)]
    server_clock = server.cpu_clock()
    said, share = run_measured([*command, f"http://127.0.0.1:{server.port}"], environment)
    server_share = server_clock.share()
    found = json.loads(said.splitlines()[-1])
    answered = found["requests"] - found["refused"]
    values = {"rate": answered * work.batch / found["seconds"], "p50_ms": found["p50_ms"], "p99_ms": found["p99_ms"]}
    return Sample(values, share, server_share, found["refused"] + found["broken"], "wrk")  # type: ignore[arg-type]


def load_redis(server: Server, work: Work, seconds: float) -> Sample:
    """XADD by redis-benchmark; a batch is a pipeline. Ids travel along, but Redis doesn't look for repeats."""
    program = shutil.which("redis-benchmark")
    assert program is not None
    maker = Maker(work)
    name = stream_prefix(work) + ("__rand_int__" if work.streams > 1 else "00")
    fields = ["id", maker.packet_id().decode()] if work.has_ids else []
    command = [program, "-h", "127.0.0.1", "-p", str(server.port), "-c", str(work.clients), "-P", str(work.batch)]
    adding = ["-r", str(STREAMS), "--csv", "XADD", name, "*", *fields, "data", maker.data().decode()]

    def run(requests: int) -> tuple[dict[str, float], float, float, float]:
        clock, began = server.cpu_clock(), time.perf_counter()
        said, share = run_measured([*command, "-n", str(requests), *adding], {})
        # The first cell repeats the command without escaping its quotes, so the cells are counted from the end.
        cells = said.strip().splitlines()[-1].strip('"').split('","')[-len(REDIS_CELLS) :]
        last = dict(zip(REDIS_CELLS, map(float, cells), strict=True))
        return last, share, clock.share(), time.perf_counter() - began

    requests = REDIS_FIRST_REQUESTS * max(work.clients, work.batch)
    found, share, server_share, elapsed = run(requests)
    if elapsed < seconds / 2:
        found, share, server_share, _ = run(int(found["rps"] * seconds))
    values = {"rate": found["rps"], "p50_ms": found["p50"], "p99_ms": found["p99"]}
    return Sample(values, share, server_share, 0, "redis-benchmark")  # type: ignore[arg-type]

"""The demo against a real node: what it shows is there, and what it tells to type works."""

import re
import shutil
import signal
import subprocess
from functools import partial
from pathlib import Path

import msgspec
import pytest
import trio
from node_process import Node
from real_waiting import PATIENCE_S, pause_async

from overlayd.chain.settings import ChainSettings
from overlayd.cli import demo, demo_chain
from overlayd.cli.demo_data import HOST_STREAM, WEATHER_STREAM, load_weather
from overlayd.client import Client
from overlayd.config import Settings
from overlayd.storage import StorageSettings

DAYS = 60


async def test_the_demo_shows_what_arrives_and_what_to_try(
    node: Node, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each day is a line with its sequence and hash; the checkpoint is verified; the three curl lines work."""
    monkeypatch.setattr(demo, "CHECK_PERIOD_S", 0.05)
    settings = Settings(storage=StorageSettings(dir=str(node.directory)))
    said = ""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(demo.Demo(settings, load_weather()[:DAYS], 300.0).run, [node.url])
        with trio.fail_after(PATIENCE_S):
            while "Try:" not in said:
                await pause_async(0.02)
                said += capsys.readouterr().out
        nursery.cancel_scope.cancel()
    async with Client(node.url) as client:
        page = await client.read(WEATHER_STREAM, limit=1000)
        assert (await client.stream(HOST_STREAM)).packets >= 1
    assert len(page.packets) == DAYS
    for packet in page.packets:
        assert re.search(
            rf"{WEATHER_STREAM} +{packet.packet_sequence}  {packet.content_hash[7:19]} +\d+\.\d\d ms", said
        )
    assert "is refused by the stream's schema at /data/temp_max: packet.schema" in said
    assert re.search(r"-- checkpoint signed: \d+ entries, .* proven to be entry \d+ --", said)


CHAIN = """
[chain]
network = "regtest"
block_interval = "500ms"
anchor_interval = "1s"
"""


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
async def test_the_demo_shows_what_blocks_confirm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On a regtest chain one stream's packets have a transaction each, the other's one for many; the curl lines show it."""
    running = Node(tmp_path / "data", config=CHAIN).wait_ready()
    settings = Settings(storage=StorageSettings(dir=str(running.directory)), chain=ChainSettings(network="regtest"))
    said = ""
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(demo.Demo(settings, load_weather()[:DAYS], 15.0).run, [running.url])
            with trio.fail_after(PATIENCE_S):
                while "Try:" not in said or not re.search(rf"{WEATHER_STREAM} (\d+ to )?{DAYS} confirmed", said):
                    await pause_async(0.02)
                    said += capsys.readouterr().out
            packets, live, chain = demo_chain.curl_lines(running.url)
            assert all(f"  {line}\n" in said for line in (packets, live, chain))
            read = await trio.run_process(packets, shell=True, capture_stdout=True, capture_stderr=True)
            page = msgspec.json.decode(read.stdout)["packets"]
            assert {one["confirmation_status"] for one in page} == {"confirmed"}
            shown = await trio.run_process(chain, shell=True, capture_stdout=True, capture_stderr=True)
            assert msgspec.json.decode(shown.stdout)["network"] == "regtest"
            nursery.cancel_scope.cancel()
    finally:
        assert running.stop() == 0
    assert "A chain inside the node (regtest" in said
    for run in re.findall(rf"-- block (\d+): {re.escape(WEATHER_STREAM)} (\d+) to (\d+) confirmed, all by", said):
        assert int(run[1]) < int(run[2])
    assert re.search(rf"-- block \d+: {re.escape(HOST_STREAM)} \d+( to \d+)? confirmed, (each|transaction) ", said)


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
async def test_the_curl_lines_work_as_typed(node: Node) -> None:
    """Publishing and reading answer at once; the live one goes on, and shows what is published."""
    publish, last, live = demo.curl_lines(node.url)
    published = await trio.run_process(publish, shell=True, capture_stdout=True, capture_stderr=True)
    assert msgspec.json.decode(published.stdout)["stream"] == "weather-001"
    async with Client(f"unix:{node.directory}/overlayd.sock") as client, trio.open_nursery() as nursery:
        await client.publish(WEATHER_STREAM, {"date": "2012-01-14", "precipitation": 4.1, "temp_max": 4.4,
                                              "temp_min": 0.6, "wind": 5.3, "weather": "snow"}, key="snow")  # fmt: skip
        read = await trio.run_process(last, shell=True, capture_stdout=True, capture_stderr=True)
        assert msgspec.json.decode(read.stdout)["key"] == "snow"
        start = partial(
            trio.run_process, live, shell=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False
        )
        process = await nursery.start(start)
        seen = b""
        with trio.fail_after(PATIENCE_S):
            while b"event: subscribed" not in seen:
                seen += await process.stdout.receive_some(4096)
            await client.publish(HOST_STREAM, {"load_1m": 0.1, "load_5m": 0.1, "load_15m": 0.1,
                                               "memory_total_kib": 2, "memory_available_kib": 1})  # fmt: skip
            while b"event: packet" not in seen:
                seen += await process.stdout.receive_some(4096)
        nursery.cancel_scope.cancel()


def test_run_demo_as_a_process(tmp_path: Path) -> None:
    """As `make run` starts it: the record passes, the node stays, Ctrl-C ends it with 0; so does a second run."""
    for first in (1, 1462):
        running = Node(tmp_path / "data", "--demo", "--demo-rate", "1000").wait_ready()
        try:
            running.wait_for("curl -N", 3 * PATIENCE_S)
        finally:
            running.process.send_signal(signal.SIGINT)
            code = running.stop()
        assert code == 0, running.output[-20:]
        said = "".join(running.output)
        for sequence in (first, first + 1460):
            assert re.search(rf"{WEATHER_STREAM} +{sequence} ", said)
        assert "/v1/chain\n" in said  # the chain is on, and told how to look at

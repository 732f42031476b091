"""`overlayd run --demo`: real data through the node, and what a reader sees of it."""

import statistics
from collections import OrderedDict
from typing import Any

import click
import msgspec
import trio

from overlayd.cli import demo_chain
from overlayd.cli.demo_data import HOST_DEFINITION, HOST_STREAM, WEATHER_DEFINITION, WEATHER_STREAM, read_host
from overlayd.cli.exits import tell
from overlayd.cli.output import shown_hash
from overlayd.cli.target import SOCKET_NAME
from overlayd.client import Client, Live, LogView
from overlayd.config import Settings
from overlayd.model.clock import Clock, SystemClock, format_time_us
from overlayd.model.errors import NodeUnreachable, OverlaydError, ShuttingDown
from overlayd.model.wire import LogMessage, PacketMessage

HOST_PERIOD_S = 1.0
CHECK_PERIOD_S = 5.0
HEAD_EVERY = 40
"""Lines after which the table's head is printed again."""
ARRIVAL_S = 10.0
_IN_FLIGHT_MAX = 4096
_ROW = "{time:<12}  {stream:<15}  {sequence:>8}  {content:<12}  {latency:>10}  {data}"


class Demo:
    """Publishes a weather record and this machine's load and memory; shows each packet as a live reader gets it.

    Latency is measured from just before the publishing request to the packet's arrival over the WebSocket, in this
    one process, which also is the node.
    """

    def __init__(
        self, settings: Settings, weather: list[dict[str, Any]], rate: float, clock: Clock | None = None
    ) -> None:
        self._settings = settings
        self._weather = weather
        self._rate = rate
        self._clock = clock or SystemClock()
        self._sent: OrderedDict[str, float] = OrderedDict()
        self._latencies_ms: list[float] = []
        self._lines = 0
        self._is_shown = True
        self._is_confirming = demo_chain.is_confirming(settings.chain)
        self._weather_arrived = 0
        self._all_arrived = trio.Event()

    async def run(self, urls: list[str]) -> None:
        """Runs for ever: the record once, then the machine's metrics. `urls` are the node's addresses."""
        socket = f"unix:{self._settings.storage.dir}/{SOCKET_NAME}"
        url = next((url for url in urls if url.startswith("http")), socket)
        try:
            async with Client(socket) as owner:
                for name, definition in ((WEATHER_STREAM, WEATHER_DEFINITION), (HOST_STREAM, HOST_DEFINITION)):
                    await owner.define(name, demo_chain.with_rule(name, definition, self._settings.chain))
            async with Client(url, verify=True) as client, client.live([WEATHER_STREAM, HOST_STREAM]) as live:
                await self._show(client, live, url)
        except (NodeUnreachable, ShuttingDown):
            return  # the node in this very process is stopping
        except OverlaydError as error:
            click.echo("overlayd: the demo ended, the node goes on", err=True)
            tell(error)

    async def _show(self, client: Client, live: Live, url: str) -> None:
        self._say_what_comes()
        await self._show_refusal(client)
        failures: list[OverlaydError] = []
        async with trio.open_nursery() as nursery:

            async def guarded(work: Any, *arguments: Any) -> None:
                try:
                    await work(*arguments)
                except OverlaydError as error:  # told by `run`, outside the nursery, which would wrap it
                    failures.append(error)
                    nursery.cancel_scope.cancel()

            nursery.start_soon(guarded, self._print_arrivals, live)
            nursery.start_soon(guarded, self._publish_host, client)
            nursery.start_soon(guarded, self._check_log, client)
            if self._is_confirming:
                nursery.start_soon(guarded, self._print_confirmations, client)
            await guarded(self._publish_weather, client)
            if not failures:
                self._say_what_next(url)
        if failures:
            raise failures[0]

    def _say_what_comes(self) -> None:
        click.echo(
            f"\n{len(self._weather)} days of weather in Seattle (NOAA data, from the package vega-datasets) go to the "
            f"stream {WEATHER_STREAM},\n{self._rate:g} a second, and this machine's load and memory to {HOST_STREAM}, "
            "once a second. Each line is a packet as it\narrived over a WebSocket, after the node had synced it to "
            "disk. LATENCY: from before the request to the arrival.\n"
        )
        if self._is_confirming:
            click.echo(demo_chain.describe(self._settings.chain))

    async def _show_refusal(self, client: Client) -> None:
        """Shows that the stream's schema is held against every packet."""
        broken = self._weather[0] | {"temp_max": "warm"}
        try:
            await client.publish(WEATHER_STREAM, broken)
        except OverlaydError as error:
            where = f" at {error.violations[0].pointer}" if error.violations else ""
            click.echo(f'A row with temp_max "warm" is refused by the stream\'s schema{where}: {error.code}.\n')

    async def _publish_weather(self, client: Client) -> None:
        started = trio.current_time()
        begun = format_time_us(self._clock.now_us())
        for number, row in enumerate(self._weather):
            await trio.sleep_until(started + number / self._rate)
            await self._publish(client, WEATHER_STREAM, row, f"{row['date']} replayed {begun}")
        with trio.move_on_after(ARRIVAL_S):
            await self._all_arrived.wait()
        self._is_shown = False

    async def _publish_host(self, client: Client) -> None:
        while True:
            await self._publish(client, HOST_STREAM, read_host(), f"host {format_time_us(self._clock.now_us())}")
            await trio.sleep(HOST_PERIOD_S)

    async def _publish(self, client: Client, stream: str, data: dict[str, Any], packet_id: str) -> None:
        self._sent[f"{stream} {packet_id}"] = trio.current_time()
        if len(self._sent) > _IN_FLIGHT_MAX:
            self._sent.popitem(last=False)
        await client.publish(stream, data, id=packet_id)

    async def _print_arrivals(self, live: Live) -> None:
        async for message in live:
            self._take(message)

    def _take(self, message: LogMessage) -> None:
        if not isinstance(message, PacketMessage):
            return
        packet = message.packet
        started = self._sent.pop(f"{packet.stream_id} {packet.packet_id}", None)
        if started is None:
            return  # somebody else's packet
        if not self._is_shown:
            return
        latency_ms = (trio.current_time() - started) * 1000
        self._latencies_ms.append(latency_ms)
        self._print_row(
            time=packet.appended_at[11:23], stream=packet.stream_id, sequence=packet.packet_sequence,
            content=shown_hash(packet.content_hash), latency=f"{latency_ms:.2f} ms",
            data=_describe(bytes(packet.data_payload)),
        )  # fmt: skip
        self._weather_arrived += packet.stream_id == WEATHER_STREAM
        if self._weather_arrived == len(self._weather):
            self._all_arrived.set()

    def _print_row(self, **cells: object) -> None:
        if self._lines % HEAD_EVERY == 0:
            head = {"time": "APPENDED UTC", "stream": "STREAM", "sequence": "SEQUENCE", "content": "CONTENT HASH"}
            click.echo(_ROW.format(**head, latency="LATENCY", data="DATA"))
        self._lines += 1
        click.echo(_ROW.format(**cells))

    async def _print_confirmations(self, client: Client) -> None:
        """A line for what each block confirmed: of the record to its end, of this machine as long as packets are shown."""

        def tell_run(stream: str, line: str) -> None:
            if self._is_shown or stream == WEATHER_STREAM:
                click.echo(line)

        async with client.live([WEATHER_STREAM, HOST_STREAM], deliver="confirmed") as live:
            await demo_chain.tell_confirmations(live, tell_run)

    async def _check_log(self, client: Client) -> None:
        """Every few seconds: the signed checkpoint extends the last one, and the newest packet's proof leads into it."""
        view = LogView()
        while self._is_shown:
            await trio.sleep(CHECK_PERIOD_S)
            if not self._is_shown:
                return
            seen = view.known.size
            newest = await client.read_last(WEATHER_STREAM)
            verdict = await client.verify_proof(WEATHER_STREAM, newest.packet_sequence, view, subject=newest)
            tree = await client.check_log(view)
            extends = f", extends the one over {seen}" if seen else ""
            click.echo(
                f"-- checkpoint signed: {tree.checkpoint.size} entries, root {tree.checkpoint.root.hex()[:16]}…{extends}; "
                f"{WEATHER_STREAM} {verdict.sequence} proven to be entry {verdict.offset} --"
            )

    def _say_what_next(self, url: str) -> None:
        median, worst = statistics.median(self._latencies_ms), max(self._latencies_ms)
        click.echo(
            f"\n{len(self._latencies_ms)} packets published and received; latency median {median:.2f} ms, worst {worst:.2f} ms, "
            f"measured here and now.\nThe node stays up, and {HOST_STREAM} goes on once a second. Ctrl-C ends it.\n\n"
            f"API         {url}/docs\nreadiness   {url}/readyz\nmetrics     {url}/metrics\n"
            f"Unix socket {self._settings.storage.dir}/{SOCKET_NAME}\n\nTry:\n"
        )
        for line in (*curl_lines(url), *(demo_chain.curl_lines(url) if self._is_confirming else ())):
            click.echo(f"  {line}")
        click.echo("")


def curl_lines(url: str) -> tuple[str, str, str]:
    """Three commands that work as typed while the demo's node is up."""
    return (
        f"curl -d '{{\"t\":21}}' {url}/v1/streams/weather-001/data",
        f"curl '{url}/v1/streams/{WEATHER_STREAM}/last?key=snow'",
        f"curl -N -H 'Accept: text/event-stream' '{url}/v1/live?stream={HOST_STREAM}'",
    )


def _describe(payload: bytes) -> str:
    data = msgspec.json.decode(payload)
    if "weather" in data:
        return f"{data['date']}  {data['weather']:<7}  {data['temp_min']:>5} to {data['temp_max']} °C"
    used = data["memory_total_kib"] - data["memory_available_kib"]
    return f"load {data['load_1m']:.2f}, {used / data['memory_total_kib']:.0%} of memory in use"

"""Rows of publishing: single packets by 1, 64 and 256 clients, and batches of 100."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

from benchmarks.generator import generate
from benchmarks.outside import NATIVE, NCHAN, load_http, load_redis
from benchmarks.protocols import MqttConversation, NatsConversation, create_nats_stream
from benchmarks.readers import attached_readers
from benchmarks.samples import Contender, Row, Sample
from benchmarks.servers import Server
from benchmarks.sqlite_limit import SqliteLimit, count_commits, group_size
from benchmarks.work import Work, stream_prefix

BATCH = 100
BATCH_CLIENTS = 4
SINGLE_CLIENTS = (1, 64, 256)
NATS_STREAM = "bench"


class Publishing:
    """The servers of the publish and batch rows, all running, and who does what with them."""

    def __init__(self, node: Server, peers: dict[str, Server], limit: SqliteLimit | None) -> None:
        self._node, self._peers, self._limit = node, peers, limit
        self._groups: dict[Work, int] = {}
        for key in ("nats", "nats-default"):
            if key in peers:
                create_nats_stream(peers[key].port, NATS_STREAM)

    def _load_node(self, work: Work, seconds: float) -> Sample:
        before = count_commits(self._node)
        with attached_readers("overlayd", self._node.port, work.readers, stream_prefix(work)) as said:
            sample = load_http(self._node, work, NATIVE, seconds)
            readers = said()
        self._groups[work] = group_size(before, count_commits(self._node))
        return replace(sample, note=f"{sample.note}, groups of {self._groups[work]}{readers}")

    def _load_limit(self, limit: SqliteLimit, work: Work, seconds: float) -> Sample:
        limit.group = self._groups[work]
        return limit.insert(seconds)

    def _load_nats(self, server: Server, work: Work, seconds: float) -> Sample:
        with attached_readers("nats", server.port, work.readers, f"{NATS_STREAM}.{stream_prefix(work)}") as said:
            sample = generate(
                server, work, lambda number: NatsConversation(work, f"_INBOX.bench.{number}", NATS_STREAM), seconds
            )
            return replace(sample, note=sample.note + said())

    def _load_mqtt(self, server: Server, work: Work, seconds: float) -> Sample:
        with attached_readers("mqtt", server.port, work.readers, stream_prefix(work)) as said:
            sample = generate(server, work, lambda number: MqttConversation(work, f"client-{number}"), seconds)
            return replace(sample, note=sample.note + said())

    def _load_peer(self, key: str, work: Work, seconds: float) -> Sample:
        server = self._peers[key]
        if key.startswith("nats"):
            return self._load_nats(server, work, seconds)
        if key == "redis":
            return load_redis(server, work, seconds)
        if key == "nchan":
            return load_http(server, work, NCHAN, seconds)
        return self._load_mqtt(server, work, seconds)

    def contenders(self, work: Work) -> tuple[Contender, ...]:
        """The node, each peer that can do the work, and SQLite."""
        found = [Contender(self._node.name, self._alone("", partial(self._load_node, work)))]
        for key, server in self._peers.items():
            if key == "nchan" and work.batch > 1:
                continue
            found.append(
                Contender(server.name, self._alone(key, partial(self._load_peer, key, work)), server.is_durable,
                          caveat(key, work))
            )  # fmt: skip
        if self._limit is not None:
            load = self._alone("", partial(self._load_limit, self._limit, work))
            found.append(Contender(self._limit.name, load))
        return tuple(found)

    def _alone(self, key: str, load: Callable[[float], Sample]) -> Callable[[float], Sample]:
        """The same load, while all other peers are held. The node isn't: it does nothing unasked, and has timers."""

        def run(seconds: float) -> Sample:
            with ExitStack() as held:
                for other, server in self._peers.items():
                    if other != key:
                        held.enter_context(server.held())
                return load(seconds)

        return run

    def publish_rows(self, readers: int, clients: Sequence[int] = SINGLE_CLIENTS) -> list[Row]:
        """Single packets, as the product is used and bare."""
        rows = []
        for count in clients:
            used, bare = Work(count, readers=readers), Work(count, has_ids=False, streams=1)
            plural = "client" if count == 1 else "clients"
            rows.append(Row("publish", f"single packets, {count} {plural}", "rate", self.contenders(used),
                            f"random UUID ids, 100 streams, a fifth with a schema, {readers} live readers"))  # fmt: skip
            rows.append(Row("publish", f"single packets, {count} {plural}, bare", "rate", self.contenders(bare),
                            "one stream, no ids, no readers"))  # fmt: skip
        return rows

    def batch_rows(self, readers: int, clients: int = BATCH_CLIENTS) -> list[Row]:
        """Arrays and NDJSON of 100, with ids, bare, and with a schema on every stream."""
        rows = []
        for form, name in (("array", "arrays"), ("lines", "NDJSON")):
            used = Work(clients, form, BATCH, readers=readers)  # type: ignore[arg-type]
            bare = replace(used, has_ids=False, streams=1, readers=0)
            title = f"{name} of {BATCH}, {clients} clients"
            rows.append(Row("batch", title, "rate", self.contenders(used),
                            f"random UUID ids, 100 streams, a fifth with a schema, {readers} live readers"))  # fmt: skip
            rows.append(Row("batch", f"{title}, bare", "rate", self.contenders(bare), "one stream, no ids, no readers"))
        checked = Work(clients, "array", BATCH, is_checked=True)
        ours = Contender("overlayd, schema", self._alone("", partial(self._load_node, checked)))
        plain = Work(clients, "array", BATCH, streams=1)
        beside = Contender("overlayd, no schema", self._alone("", partial(self._load_node, plain)))
        rows.append(Row("batch", f"arrays of {BATCH}, a schema on every stream", "rate", (ours, beside),
                        "random UUID ids; 100 streams with a schema, beside one without"))  # fmt: skip
        return rows


def caveat(key: str, work: Work) -> str:
    """What a peer does differently in this row."""
    if key == "redis":
        pipelined = " batches are pipelines;" if work.batch > 1 else ""
        return f"{pipelined} no repeats are looked for; no readers attached".strip()
    if key == "nchan":
        return "no ids, no readers attached"
    if key == "mosquitto":
        return "no ids" + ("; batches are publishes at once" if work.batch > 1 else "")
    if work.batch > 1:
        return "atomic batches of JetStream" if work.form == "array" else "publishes at once, each acknowledged"
    return ""

"""Publishes plain packets without a task of their own: from the bytes of a request to those of its answer.

Plain is what producers send by the thousands: one JSON packet object in one piece, on a kept-alive connection, with
nothing asked for but its receipt. Everything else, and everything that will be refused, is left to the lanes that can
wait and word a problem; they judge it from its first byte, so that there is one way to be refused.
"""

from collections.abc import Callable

import msgspec
import structlog
import trio

from overlayd.access import Principal
from overlayd.access.gate import Gate
from overlayd.model.draft import AppendResult, Receipt
from overlayd.model.errors import OverlaydError
from overlayd.model.names import StreamName
from overlayd.model.receipt_text import encode_receipt
from overlayd.net.access_log import RequestLog
from overlayd.net.answer_head import AnswerHeads
from overlayd.net.connection import Connection
from overlayd.net.head import HEAD_END, Head, find_head, parse_head
from overlayd.net.publish import OBJECT_TYPES, Ask, Publisher
from overlayd.net.publish_ask import packets_ask
from overlayd.net.publish_lane import ROUTES, Target, find_target
from overlayd.net.turnstile import Stay
from overlayd.pipeline.data_form import media_type_of
from overlayd.pipeline.decode import is_array
from overlayd.pipeline.intake import Intake, StreamAtHand, Terms
from overlayd.storage import Log

QUICK_BYTES = 16 << 10
"""Larger bodies are decoded by their connection's task, which lets others run in between."""
LINES_MAX = 16_384
"""Request lines that are remembered with what they ask for."""
_LENGTH = b"content-length:"
_SLOW_HEADERS = frozenset((b"expect", b"content-encoding"))
_ROUTE = ROUTES["packets"]
_log = structlog.get_logger("net.quick_publish")

Recall = Callable[[Connection, Head], Principal | None]


class HeaderMemo:
    """What the headers of a connection's last request said. They say the same again when every byte is the same but
    the digits of the length."""

    __slots__ = ("after", "answer_headers", "before", "generation", "principal", "terms")

    def __init__(
        self, before: bytes, after: bytes, terms: Terms, connection: Connection, principal: Principal, generation: int
    ) -> None:  # fmt: skip
        self.before = before
        self.after = after
        self.terms = terms
        self.answer_headers = connection.answer_headers
        self.principal = principal
        self.generation = generation


class Line(msgspec.Struct, frozen=True):
    """What a request line asks for."""

    path: str
    target: Target
    at_hand: StreamAtHand


class _Request:
    """A request that was taken on, and the ticket on which the writer answers it."""

    __slots__ = ("body_bytes", "is_settled", "memo", "path", "publish", "raw", "request_id", "started", "stay", "trace")

    def __init__(
        self, publish: "QuickPublish", stay: Stay, raw: bytes, body_bytes: int, path: str, memo: HeaderMemo
    ) -> None:  # fmt: skip
        self.publish = publish
        self.stay = stay
        self.raw = raw
        self.body_bytes = body_bytes
        self.path = path
        self.memo = memo
        self.started = trio.current_time()
        self.request_id = publish.next_request_id()
        self.is_settled = False
        self.trace = ""

    def settle(self, result: AppendResult) -> None:
        """Durable: answers. A fault here must not reach the writer."""
        self.is_settled = True
        try:
            self.publish.answer(self, result)
        except Exception as error:
            _log.error("request failed", request_id=self.request_id, exc_info=error)
            self.stay.connection.abort()
            self.stay.served(False)

    def fail(self, error: BaseException) -> None:
        """Refused, without a trace in the log: the connection's task tries again and words the problem."""
        self.is_settled = True
        self.publish.give_back(self)


class QuickPublish:
    """Serves plain packets. One for the node. A `QuickServer` of the turnstile."""

    def __init__(
        self, *, publisher: Publisher, request_log: RequestLog, next_request_id: Callable[[], str],
        recall: Recall, gate: Gate, stop: trio.Event,
    ) -> None:  # fmt: skip
        """`recall`: the door's answer to who a known connection is; the first request of a connection is judged by
        its task. `gate` says whether that still counts."""
        self.next_request_id = next_request_id
        limits = publisher.limits
        self._intake: Intake = publisher.intake
        self._log: Log = publisher.log
        self._head_bytes_max = int(limits.head_bytes)
        self._body_bytes_max = min(QUICK_BYTES, int(limits.packet_bytes), int(limits.body_bytes))
        self._limits = limits
        self._metering = publisher.metering
        self._budget = publisher.bodies.budget
        self._request_log = request_log
        self._recall = recall
        self._gate = gate
        self._streams = publisher.streams
        self._courtesy = publisher.lane.courtesy
        self._stop = stop
        self._answer_heads = AnswerHeads()
        self._targets: dict[bytes, Line] = {}

    def take(self, stay: Stay, data: bytes) -> bool:
        """As `QuickServer.take`."""
        if self._stop.is_set():
            return False
        end = data.find(HEAD_END)
        body_at = end + len(HEAD_END)
        if end < 0 or body_at > self._head_bytes_max:
            return False
        connection = stay.connection
        found = self._find_known(connection, data, end) or self._judge(connection, data[:body_at])
        if found is None:
            return False
        line, memo, length = found
        stop = body_at + length
        if len(data) < stop or not 0 < length <= self._body_bytes_max:
            return False
        body = data[body_at:stop]
        if is_array(body):
            return False
        request = self._intake.judge_now(line.at_hand, body, memo.terms)
        if request is None or not self._budget.take_now(length):
            return False
        taken = _Request(self, stay, data if len(data) == stop else data[:stop], length, line.path, memo)
        taken.trace = request.drafts[0].traceparent
        if not self._log.append_soon(request, taken):
            self._budget.give_back(length)
            return False
        if len(data) > stop:
            connection.unread += data[stop:]
        self._courtesy.note_packet(taken.started)
        return True

    def answer(self, taken: _Request, result: AppendResult) -> None:
        """Tells the producer, counts the request and lets the connection go on."""
        receipt, stay = result.outcomes[0], taken.stay
        if not isinstance(receipt, Receipt):
            self.give_back(taken)
            return
        connection, status = stay.connection, 200 if receipt.duplicate else 201
        now, started = trio.current_time(), taken.started
        body = encode_receipt(receipt)
        connection.requests_left -= 1
        goes_on = connection.requests_left > 0 and not self._stop.is_set()
        head = self._answer_heads.encode_receipt(
            status, len(body), taken.request_id, now, is_closing=not goes_on, more=taken.memo.answer_headers
        )
        if stay.is_left:  # cancelled meanwhile, or cut
            status, body = 499, b""
        else:
            try:
                answer = head + body
                connection.sent_bytes += len(answer)
                stay.link.write_now(answer)
            except trio.BrokenResourceError:
                goes_on = False
        self._budget.give_back(taken.body_bytes)
        meters = self._intake.meters
        meters.count_appended(1 - receipt.duplicate, int(receipt.duplicate), now - started)
        if taken.trace:
            is_begun = not taken.memo.terms.traceparent
            meters.trace_one(receipt.stream, receipt, taken.trace, is_begun=is_begun, started=started)
        self._request_log.answer_begun(_ROUTE, started, now)
        self._request_log.record(
            method="POST", path=taken.path, route=_ROUTE, status=status, sent_bytes=len(body), started=started,
            principal=taken.memo.terms.principal, request_id=taken.request_id, now=now,
        )  # fmt: skip
        stay.served(goes_on)

    def give_back(self, taken: _Request) -> None:
        """Leaves the request to its connection's task."""
        self._budget.give_back(taken.body_bytes)
        taken.stay.give_back(taken.raw)

    def _find_known(self, connection: Connection, data: bytes, end: int) -> tuple[Line, HeaderMemo, int] | None:
        """What the same request line and the same headers were found to say before; None for anything else."""
        memo = connection.memo
        if memo is None or not self._gate.is_good(memo.principal, memo.generation):
            return None
        line_end = data.find(b"\r\n")
        known = self._targets.get(data[:line_end])
        before, after = memo.before, memo.after
        digits_at, digits_end = line_end + len(before), end - len(after)
        if known is None or not data.startswith(before, line_end) or not data.endswith(after, digits_at, end):
            return None
        digits = data[digits_at:digits_end]
        if not digits.isdigit() or len(digits) > 18 or not self._may_publish(memo.principal, known.target):
            return None
        return known, memo, int(digits)

    def _judge(self, connection: Connection, raw: bytes) -> tuple[Line, HeaderMemo, int] | None:
        """The whole judgement of a head. None for what isn't plain, or is refused."""
        if connection.remembered.principal is None or not raw.startswith(b"POST /"):
            return None  # nobody to recall: the head would only be parsed twice
        try:
            if find_head(raw, 0, self._limits) != len(raw):
                return None
            head = parse_head(raw, self._limits)
            target = find_target(head)
            if target is None or target.is_data or not _is_plain(head):
                return None
            principal = self._recall(connection, head)
            if principal is None or not self._may_publish(principal, target):
                return None
            if self._metering is not None and self._metering.concerns(principal):
                return None  # what may have to wait or be refused
            ask = packets_ask(target.stream, principal, head.headers, head.query, "")
        except OverlaydError:
            return None
        if not _is_for_one_receipt(ask):
            return None
        return self._remember(connection, head, target, ask)

    def _may_publish(self, principal: Principal, target: Target) -> bool:
        return self._streams.may(principal, "publish", target.stream)

    def _remember(
        self, connection: Connection, head: Head, target: Target, ask: Ask
    ) -> tuple[Line, HeaderMemo, int]:  # fmt: skip
        """Keeps what line and headers said apart from one another, so that either is recognized again."""
        raw, length = head.raw, head.content_length or 0
        line_end = raw.index(b"\r\n")
        digits_at = raw.lower().index(b"\r\n" + _LENGTH) + 2 + len(_LENGTH)
        digits_at += len(raw[digits_at:]) - len(raw[digits_at:].lstrip(b" \t"))
        digits_end = digits_at
        while raw[digits_end : digits_end + 1].isdigit():
            digits_end += 1
        principal = ask.principal
        terms = Terms(
            principal.name, principal.may_create, bool(ask.atomic), ask.expected_sequence, ask.traceparent,
            ask.idempotency_key,
        )  # fmt: skip
        memo = HeaderMemo(
            raw[line_end:digits_at],
            raw[digits_end : -len(HEAD_END)],
            terms,
            connection,
            principal,
            self._gate.generation,
        )
        line = Line(head.path, target, StreamAtHand(StreamName(target.stream)))  # the name was parsed with the head
        if not head.query:
            connection.memo = memo
            if len(self._targets) >= LINES_MAX:
                self._targets.clear()
            self._targets[raw[:line_end]] = line
        return line, memo, length


def _is_plain(head: Head) -> bool:
    return (
        head.version == "1.1"
        and head.content_length is not None
        and not head.has_token(b"connection", "close")
        and not any(name in _SLOW_HEADERS for name, _ in head.headers)
    )


def _is_for_one_receipt(ask: Ask) -> bool:
    """Whether the answer is a receipt and nothing else."""
    is_object = media_type_of(ask.content_type) in OBJECT_TYPES and not ask.is_binary_event
    return is_object and not (ask.stop_on_error or ask.all_receipts or ask.with_proof)

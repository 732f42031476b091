"""Reads an HTTP/1.1 answer from bytes, with bounds on everything that the other side can make long. Sans-IO."""

import zlib

import httptools

from overlayd.model.errors import OutboundFailure
from overlayd.outbound.reasons import Reason

OVERHEAD_FACTOR = 8
OVERHEAD_BYTES = 64 << 10
"""A body of n bytes may take n times the factor on the wire, and so many more: chunk sizes, extensions, trailers."""
_INFLATED = {"gzip": 31, "x-gzip": 31, "deflate": 47}
_SWITCHING_PROTOCOLS = 101


class AnswerReader:
    """One answer. Feed it bytes until `is_complete`; informational answers (1xx) before it are passed over.

    `body_max` bounds the body after inflating; None: the caller takes it away piece by piece (`take_body`). With
    `is_body_evidence` a body that is too long or can't be inflated is cut and told as `is_cut`, else it fails.
    """

    def __init__(self, *, head_bytes: int, head_lines: int, body_max: int | None, is_body_evidence: bool) -> None:
        self._head_bytes_max = head_bytes
        self._head_lines_max = head_lines
        self._body_max = body_max
        self._is_body_evidence = is_body_evidence
        self._parser = httptools.HttpResponseParser(self)
        self._inflater: zlib._Decompress | None = None
        self._failure: OutboundFailure | None = None
        self._head_bytes = 0
        self._head_lines = 0
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._is_delimited = False
        self.limit_hit = ""
        """The limit that ended the reading, as it is called in `Limits`."""
        self.wire_bytes = 0
        """Everything that came, to the first byte of the head and back."""
        self.status = 0
        self.headers: list[tuple[str, str]] = []
        self.is_head_complete = False
        self.is_complete = False
        """Nothing more is needed of this answer."""
        self.is_cut = False
        self.is_reusable = False
        """The connection can take another request, if everything of this one was sent."""
        self.is_sent = True
        """For whoever sends: whether the request went out whole."""

    def feed(self, data: bytes) -> None:
        """Takes the next bytes. Raises OutboundFailure."""
        self.wire_bytes += len(data)
        if not self.is_head_complete:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._note(Reason.ANSWER_MALFORMED, "the answer changes to another protocol, unasked")
        except httptools.HttpParserError as err:
            self.is_reusable = False
            if not self.is_complete:
                self._note(Reason.ANSWER_MALFORMED, f"what came isn't HTTP/1.1: {err}")
        if not self.is_head_complete and self._head_bytes > self._head_bytes_max:
            self.limit_hit = "outbound_head_bytes"
            self._note(Reason.ANSWER_HEAD_TOO_LARGE, f"the answer's head is over {self._head_bytes_max} bytes")
        if self._failure is not None:
            raise self._failure
        self._bound_overhead()

    def feed_end(self) -> None:
        """The other side sends no more. Raises OutboundFailure when that cuts the answer off."""
        if self.is_complete:
            self.is_reusable = False
        elif not self.is_head_complete:
            raise OutboundFailure.of(
                Reason.ANSWER_CLOSED,
                "the connection was closed " + ("within the answer's head" if self.wire_bytes else "without an answer"),
            )
        elif self._is_delimited:
            self._cut(Reason.BODY_CUT, "the connection was closed within the answer's body")
        else:
            self.is_complete = True

    def feed_reset(self) -> None:
        """The connection broke behind the head. Raises OutboundFailure when that cuts the answer off."""
        if not self.is_complete:
            self._cut(Reason.BODY_CUT, "the connection was reset within the answer's body")
        self.is_reusable = False

    def cut_body(self) -> None:
        """Takes the answer as it is, its head being there."""
        assert self.is_head_complete
        self.is_cut = not self.is_complete
        self.is_complete = True
        self.is_reusable = False

    def take_body(self) -> bytes:
        """What came of the body since the last call."""
        body = b"".join(self._body)
        self._body.clear()
        if self._body_max is None:
            self._body_bytes = self.wire_bytes = 0
        return body

    def close(self) -> None:
        """Nothing more is fed. The parser holds this, and this the parser, until the collector comes by: not for each call."""
        del self._parser

    # Called by httptools. What is raised here would come out as a parser's error, so failures are kept for `feed`.

    def on_message_begin(self) -> None:
        if self.is_complete:
            self.is_reusable = False  # a second answer to one request

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_lines += 1
        if self._head_lines > self._head_lines_max:
            self.limit_hit = "outbound_head_lines"
            self._note(Reason.ANSWER_HEAD_TOO_LARGE, f"the answer has more than {self._head_lines_max} header lines")
        elif not self.is_head_complete:
            self.headers.append((name.decode("latin-1").lower(), value.decode("latin-1").strip()))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status == _SWITCHING_PROTOCOLS:
            self._note(Reason.ANSWER_MALFORMED, "the answer changes to another protocol, unasked")
        if self.is_complete or status < 200:
            self.headers.clear()
            return
        self.status = status
        self.is_head_complete = True
        named = dict(self.headers)
        self._is_delimited = "content-length" in named or "transfer-encoding" in named
        bits = _INFLATED.get(named.get("content-encoding", "").lower())
        self._inflater = None if bits is None else zlib.decompressobj(bits)

    def on_body(self, data: bytes) -> None:
        if self.is_complete or not self.is_head_complete or self._failure is not None:
            return
        if self._inflater is not None:
            data = self._inflate(data)
        room = len(data) if self._body_max is None else self._body_max - self._body_bytes
        self._body_bytes += min(len(data), room)
        self._body.append(data[:room])
        if len(data) > room:
            self._note_long_body()

    def on_message_complete(self) -> None:
        if not self.is_head_complete or self.is_complete or self._failure is not None:
            return
        if self._inflater is not None and self._body_bytes and not self._inflater.eof:
            self._note_broken_body()
        else:
            self.is_complete = True
            self.is_reusable = self._parser.should_keep_alive()

    def _inflate(self, data: bytes) -> bytes:
        assert self._inflater is not None
        bound = 1 << 20 if self._body_max is None else self._body_max - self._body_bytes + 1
        try:
            inflated = self._inflater.decompress(data, bound)
        except zlib.error:
            self._note_broken_body()
            return b""
        if self._inflater.unconsumed_tail and self._body_max is None:
            self._note(Reason.BODY_TOO_LARGE, "the answer's body inflates beyond measure")
        return inflated

    def _note_broken_body(self) -> None:
        if self._is_body_evidence:
            self.cut_body()
        else:
            self._note(Reason.ANSWER_MALFORMED, "the answer's compressed body is broken")

    def _note_long_body(self) -> None:
        if self._is_body_evidence:
            self.cut_body()
        else:
            self._note(Reason.BODY_TOO_LARGE, f"the answer's body is over {self._body_max} bytes")

    def _bound_overhead(self) -> None:
        """Endless chunk extensions and trailers are no body and would go on for ever."""
        if not self.is_head_complete or self.is_complete:
            return
        bound = self._body_max if self._body_max is not None else self._body_bytes
        if self.wire_bytes > self._head_bytes + OVERHEAD_FACTOR * bound + OVERHEAD_BYTES:
            self._cut(Reason.BODY_TOO_LARGE, "the answer's body is mostly chunk sizes and trailers")

    def _cut(self, reason: Reason, detail: str) -> None:
        if not self._is_body_evidence:
            raise OutboundFailure.of(reason, detail)
        self.cut_body()

    def _note(self, reason: Reason, detail: str) -> None:
        if self._failure is None:
            self._failure = OutboundFailure.of(reason, detail)

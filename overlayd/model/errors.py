"""The one error tree. HTTP shows these as RFC 9457 problems; the CLI turns them into exit codes.

Every concrete class has a stable dotted `code`, a status hint and a retryable flag, and is listed in
docs/errors.md (a test compares the two).
"""

from typing import Any, Self

import msgspec

from overlayd.model.error_root import OverlaydError as OverlaydError
from overlayd.model.error_root import Violation as Violation
from overlayd.model.error_root import error_classes as error_classes


class MalformedJson(OverlaydError):
    code, title, status = "json.malformed", "The body is not JSON", 400


class BadParameter(OverlaydError):
    code, title, status = "parameter.invalid", "A parameter has a bad value", 400


class BadCursor(OverlaydError):
    code, title, status = "cursor.malformed", "The cursor can't be read", 400


class FutureCursor(OverlaydError):
    code, title, status = "cursor.future", "The cursor lies beyond the head", 400


class BadRequest(OverlaydError):
    code, title, status = "request.malformed", "The request can't be read", 400


class KeyInUrl(OverlaydError):
    code, title, status = "access.key_in_url", "An API key stands in the URL", 400


class LengthRequired(OverlaydError):
    code, title, status = "request.length", "The body's length is wrong", 400


class Unauthorized(OverlaydError):
    code, title, status = "access.unauthorized", "No valid credential", 401


class Forbidden(OverlaydError):
    code, title, status = "access.forbidden", "Not allowed", 403


class AnswerTooLarge(OverlaydError):
    code, title, status = "access.answer_too_large", "The answer is too large to be signed", 403


class ForeignHost(OverlaydError):
    code, title, status = "access.host", "The Host header names another machine", 403


class ForeignOrigin(OverlaydError):
    code, title, status = "access.origin", "The request comes from another site", 403


class ProxiedWithoutTrust(OverlaydError):
    code, title, status = "access.proxied", "A forwarding header came from an untrusted peer", 403


class NotFound(OverlaydError):
    code, title, status = "route.unknown", "No such resource", 404


class UnknownStream(OverlaydError):
    code, title, status = "stream.unknown", "No such stream", 404


class UnknownPacket(OverlaydError):
    code, title, status = "packet.unknown", "No such packet", 404


class UnknownPolicy(OverlaydError):
    code, title, status = "quota.unknown", "No such quota policy", 404


class UnknownReceipt(OverlaydError):
    code, title, status = "receipt.unknown", "No such receipt", 404


class UnknownHold(OverlaydError):
    code, title, status = "hold.unknown", "No such hold", 404


class UnknownKey(OverlaydError):
    code, title, status = "key.unknown", "No such key", 404


class UnknownSession(OverlaydError):
    code, title, status = "session.unknown", "No such session", 404


class UnknownSubscription(OverlaydError):
    code, title, status = "subscription.unknown", "No such subscription", 404


class UnknownDeadLetter(OverlaydError):
    code, title, status = "subscription.dead_letter", "No such dead letter", 404


class NotAcceptable(OverlaydError):
    code, title, status = "content.accept", "The answer has no such form", 406


class MethodNotAllowed(OverlaydError):
    code, title, status = "route.method", "The method isn't allowed here", 405


class DefinitionConflict(OverlaydError):
    code, title, status = "definition.conflict", "The definition was changed by somebody else", 409


class OwnedByConfig(OverlaydError):
    code, title, status = "definition.config", "The object is declared in the config file", 409


class SubscriptionConflict(OverlaydError):
    """The name is taken, or what was asked doesn't go with the subscription's kind or state."""

    code, title, status = "subscription.conflict", "The subscription can't do that", 409


class SequenceMismatch(OverlaydError):
    code, title, status = "sequence.mismatch", "expected_sequence doesn't hold", 409


class CommitmentUsed(OverlaydError):
    code, title, status = "commitment.used", "This commitment is in the log already", 409


class UnderHold(OverlaydError):
    """A legal hold or the stream's least age keeps a packet; `hold` or `until` says which."""

    code, title, status = "packet.held", "The packet is held", 409


class StreamPaused(OverlaydError):
    code, title, status, retryable = "stream.paused", "The stream takes no packets now", 409, True


class UnknownEpoch(OverlaydError):
    code, title, status = "cursor.epoch", "The cursor is of another log", 410


class CursorExpired(OverlaydError):
    code, title, status = "cursor.expired", "The cursor is older than what is kept", 410


class LogCut(OverlaydError):
    """A proof needs hashes of the part of the log that was cut."""

    code, title, status = "log.cut", "That part of the log was cut", 410


class ForkDetected(OverlaydError):
    code, title, status = "log.fork", "The log isn't an extension of what was seen", 409


class PacketGone(OverlaydError):
    code, title, status = "packet.gone", "The packet was taken away", 410


class BodyTooLarge(OverlaydError):
    code, title, status = "body.too_large", "The body is over its limit", 413


class ConsentMissing(OverlaydError):
    """Nobody consented, or the packet doesn't say whom it is about."""

    code, title, status = "consent.missing", "The packet's subject has not consented", 422


class UnknownErasure(NotFound):
    code, title = "erasure.unknown", "There is no such erasure"


class PacketTooLarge(OverlaydError):
    code, title, status = "packet.too_large", "A packet is over its limit", 413


class BatchTooLarge(OverlaydError):
    code, title, status = "batch.too_large", "Too many packets in one request", 413


class WrongContentType(OverlaydError):
    code, title, status = "content.type", "The content type isn't accepted here", 415


class WrongContentEncoding(OverlaydError):
    code, title, status = "content.encoding", "The content encoding isn't accepted here", 415


class InvalidPacket(OverlaydError):
    """A packet that the pipeline rejected; `violations` say where and why."""

    code, title, status = "packet.invalid", "The packet breaks a rule", 422


class SchemaViolation(InvalidPacket):
    code, title, status = "packet.schema", "The packet breaks its stream's schema", 422


class UnusableJson(InvalidPacket):
    code, title, status = "json.unusable", "JSON that no consumer could take", 422


class IdReused(InvalidPacket):
    code, title, status = "packet.id_reused", "The id was used with another content", 422


class HopsExceeded(OverlaydError):
    """What is made from packets is bounded, so that nothing answers itself for ever."""

    code, title, status = "hops.exceeded", "Made from other packets too often", 422


class InvalidDefinition(OverlaydError):
    code, title, status = "definition.invalid", "The definition can't be used", 422


class InvalidFilter(OverlaydError):
    code, title, status = "filter.invalid", "The filter can't be used", 422


class InvalidSubscription(OverlaydError):
    """`violations` say where in the definition and why."""

    code, title, status = "subscription.invalid", "The subscription can't be used", 422


class InvalidReply(OverlaydError):
    """What an agent replied can't be taken."""

    code, title, status = "reply.invalid", "The reply can't be used", 422


class Rate(msgspec.Struct, frozen=True):
    """A rate that was hit: so many (`quota`) in `window_s` seconds, of which `remaining` are left until `reset_s`."""

    name: str
    quota: int
    window_s: int
    remaining: int
    reset_s: float


class LimitReached(OverlaydError):
    """`rate` is set when the limit counts something per time, so that the answer can say how to keep to it."""

    code, title, status, retryable = "limit.reached", "A limit of the node is reached", 429, True
    rate: Rate | None = None

    def with_rate(self, rate: Rate) -> Self:
        """The same error, told with its rate."""
        self.rate = rate
        return self


class QuotaExceeded(LimitReached):
    """`extra` says which window, what is left and when it begins anew."""

    code, title, status, retryable = "quota.exceeded", "The quota is used up", 429, True


class UpgradeRequired(OverlaydError):
    code, title, status = "websocket.upgrade", "This needs a connection of its own", 426


class HeadTooLarge(OverlaydError):
    code, title, status = "request.head_too_large", "The request's head is over its limit", 431


class RequestTimeout(OverlaydError):
    code, title, status, retryable = "request.timeout", "The request came too slowly", 408, True


class NotSupported(OverlaydError):
    code, title, status = "request.version", "The protocol version isn't spoken here", 505


class MemoryShort(OverlaydError):
    code, title, status, retryable = "memory.short", "The node is short of memory", 503, True


class IntakeBusy(OverlaydError):
    code, title, status, retryable = "intake.busy", "The intake is full", 503, True


class IssuerUnavailable(OverlaydError):
    code, title, status, retryable = "access.issuer_unavailable", "A token's issuer can't be reached", 503, True


class TooManyConnections(OverlaydError):
    code, title, status, retryable = "connections.full", "The node holds all the connections it takes", 503, True


class ShuttingDown(OverlaydError):
    code, title, status, retryable = "node.stopping", "The node is shutting down", 503, True


class StorageFull(OverlaydError):
    code, title, status, retryable = "storage.full", "No room on the disk", 507, True


class DamagedEntry(OverlaydError):
    code, title, status = "storage.damaged", "The stored entry doesn't verify", 500


class CommitFailed(OverlaydError):
    """The disk refused a commit in a way that can't be gone on from; the process exits."""

    code, title, status, retryable = "storage.failed", "The log can't be written", 503, True


class BackupRefused(OverlaydError):
    code, title, status = "backup.refused", "The backup wasn't made", 409


class BackupDamaged(OverlaydError):
    code, title, status = "backup.damaged", "The backup isn't what was written", 422


class RestoreRefused(OverlaydError):
    code, title, status = "restore.refused", "The backup wasn't restored", 409


class SealBroken(OverlaydError):
    code, title, status = "secret.sealed", "A stored secret can't be opened", 500


class SignerUnavailable(OverlaydError):
    code, title, status, retryable = "signer.unavailable", "A key of the node can't be reached", 503, True


class KeyNotSuited(OverlaydError):
    code, title, status = "signer.not_suited", "A key of the node can't do this", 501


class OutboundFailure(OverlaydError):
    """A call to another server that got no answer. `reason` is one of `outbound.Reason`, a stable word for programs."""

    code, title, status, retryable = "outbound.failed", "A call to another server failed", 502, True

    @classmethod
    def of(cls, reason: str, detail: str, *, subject: str = "", hint: str = "") -> Self:
        """One with its reason."""
        return cls(detail, subject=subject, hint=hint, extra={"reason": str(reason)})

    @property
    def reason(self) -> str:
        """Why; empty when it came without."""
        return str(self.extra.get("reason", ""))


class ConfigInvalid(OverlaydError):
    code, title, status = "config.invalid", "The configuration can't be used", 422


class DirectoryInUse(OverlaydError):
    code, title, status = "directory.in_use", "Another daemon holds the directory", 500


class LogInconsistent(OverlaydError):
    code, title, status = "log.inconsistent", "The log contradicts what was signed", 500


class LogDamaged(LogInconsistent):
    """The database isn't what was written, and the node could not mend it by itself."""

    code, title = "storage.broken", "The database is damaged"


class NewerSchema(OverlaydError):
    code, title, status = "storage.newer", "The database was written by a newer version", 500


class VerificationFailed(OverlaydError):
    code, title, status = "proof.broken", "The proof doesn't hold", 422


class MalformedChainData(OverlaydError):
    """Bytes that aren't what they are taken for; `subject` names the format (transaction, BUMP, BEEF, key, …)."""

    code, title, status = "chain.malformed", "The bytes aren't of the format", 422


class UnknownSigner(VerificationFailed):
    code, title = "proof.unknown_signer", "None of the known keys signed it"


class RegtestAnchor(VerificationFailed):
    code, title = "proof.regtest", "The proof is anchored on a chain that anybody makes at home"


class TransactionInvalid(VerificationFailed):
    code, title = "chain.transaction", "The transaction breaks a rule of the chain"


class ScriptFailed(TransactionInvalid):
    code, title = "chain.script", "An input may not spend its output"


class SignatureInvalid(VerificationFailed):
    code, title = "signature.invalid", "The signature doesn't hold"


class BlockUnknown(VerificationFailed):
    """A proof leads to no header that is held: the block is too new, or on another branch."""

    code, title, status, retryable = "chain.block_unknown", "The proof's block isn't known here", 409, True


class HeadersRejected(VerificationFailed):
    code, title = "chain.headers", "The block headers break the chain's rules"


class HeadersUnconnected(HeadersRejected):
    """The first header follows none that is held: earlier ones must be asked for."""

    code, title = "chain.headers_unconnected", "The block headers follow none that is held"


class SourceUnavailable(OverlaydError):
    """A chain source gave no answer, or one that can't be used; another source may."""

    code, title, status, retryable = "source.unavailable", "A chain source gave no usable answer", 503, True


class NoChain(NotFound):
    code, title = "chain.none", "This node follows no chain"


class WalletRefused(OverlaydError):
    code, title, status = "wallet.refused", "The node's wallet can't do this now", 409


class RegtestRefused(OverlaydError):
    code, title, status = "regtest.refused", "The embedded chain can't do this now", 409


class NodeUnreachable(OverlaydError):
    """Raised by the client. `is_sent`: the request may have arrived before the connection broke."""

    code, title, status, retryable = "client.unreachable", "The node can't be reached", 503, True

    def __init__(self, detail: str, *, is_sent: bool, subject: str = "", hint: str = "") -> None:
        super().__init__(detail, subject=subject, hint=hint)
        self.is_sent = is_sent


class UncertainPublish(OverlaydError):
    """Raised by the client: packets without ids were sent and no answer came, so a repeat might append them twice."""

    code, title = "client.uncertain", "Whether the packets are in the log is unknown"


class SessionClosed(OverlaydError):
    """Raised by the client: the node ended the live session in a way that reconnecting wouldn't change."""

    code, title = "client.closed", "The node ended the session"


class NoCoins(OverlaydError):
    """Raised by the client: none of the producer's coins can pay for the packet's transaction now."""

    code, title = "client.no_coins", "No coin can pay for it"


class NotConfirmed(OverlaydError):
    """Raised by the client: a packet that is followed has failed, was dropped, or can't be given any more."""

    code, title = "client.not_confirmed", "The packet isn't confirmed"


class UnexpectedAnswer(OverlaydError):
    """Raised by the client: what answered doesn't speak this API."""

    code, title, status = "client.answer", "The answer isn't one of the API", 502


class ApiProblem(OverlaydError):
    """Raised by the client for a problem whose code it doesn't know, such as a newer node's."""

    code, title = "client.problem", "The node answered with a problem"

    def __init__(self, detail: str, *, given_code: str, given_status: int, is_retryable: bool, **rest: Any) -> None:
        super().__init__(detail, **rest)
        self.given_code = given_code
        self.given_status = given_status
        self.is_retryable = is_retryable

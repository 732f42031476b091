"""What the audit stream is told: one record per security-relevant act (docs/security.md, Audit).

A record holds no secret and no payload: whoever writes one names things by their ids.
"""

from collections.abc import Awaitable, Callable
from typing import Literal

import msgspec

AuditResult = Literal["ok", "refused", "failed"]
AuditValue = str | int | bool


class AuditRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who did what, from where, to what, and how it ended.

    `action`: dotted, such as `key.create`, `access.failed`, `stream.delete`, `config.reload`. `actor`: a principal's
    name, "" for somebody unknown. `address`: an IP address, or `uid:<uid>` of a Unix peer. `subject`: the id or name
    of what it was done to. `detail`: a few more facts; neither secrets nor payloads.
    """

    action: str
    result: AuditResult = "ok"
    actor: str = ""
    address: str = ""
    subject: str = ""
    request_id: str = ""
    detail: dict[str, AuditValue] = {}


AuditSink = Callable[[AuditRecord], None]
"""Takes a record and returns at once; it is written soon after. Never raises.

For what needn't be durable before an answer. The sink is bounded; what doesn't fit is counted, and the count is
written as a record of its own.
"""


WriteAudit = Callable[[AuditRecord], Awaitable[None]]
"""Takes a record and returns once it is durable, for acts that are answered by 2xx. Raises what keeps the log from it."""


def ignore_record(record: AuditRecord) -> None:
    """A sink that keeps nothing, for parts that run without a log."""

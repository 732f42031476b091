"""What every error of the project is: detail, subject, hint, and how HTTP shows it. The errors stand in errors.py."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import msgspec


class Violation(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing wrong with the input: where (JSON pointer), which rule, in words.

    `index` is the position in an array or batch, `line` the 1-based line of NDJSON.
    """

    pointer: str
    code: str
    detail: str
    index: int | None = None
    line: int | None = None


class OverlaydError(Exception):
    """Root of everything this project raises on purpose.

    `subject` names the thing it is about (a stream, a file, a cursor), `hint` says what to do.
    `extra` holds members that a problem body adds, such as `oldest` of a cursor that is too old.
    """

    code: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        detail: str,
        *,
        subject: str = "",
        hint: str = "",
        violations: Sequence[Violation] = (),
        retry_after_s: float | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.subject = subject
        self.hint = hint
        self.violations = tuple(violations)
        self.retry_after_s = retry_after_s
        self.extra = extra or {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.detail!r}, code={self.code!r}, subject={self.subject!r})"


def error_classes(root: type[OverlaydError] = OverlaydError) -> Iterator[type[OverlaydError]]:
    """Yields every class of the tree, `root` first."""
    yield root
    for child in root.__subclasses__():
        yield from error_classes(child)

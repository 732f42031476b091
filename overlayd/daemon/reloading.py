"""The configuration read anew while the node runs: what differs, what of it can change now, and who is told.

Everything that can be refused is refused before anything changes, so that a broken file changes nothing. What needs a
restart keeps its old value, and is told of until then.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

import msgspec
import structlog
import trio

from overlayd.access.key_changes import Author
from overlayd.config import Settings
from overlayd.config.changes import Change, compare
from overlayd.config.live import put
from overlayd.model.audit import AuditRecord, WriteAudit
from overlayd.model.errors import ConfigInvalid, OverlaydError
from overlayd.model.metrics import Metrics
from overlayd.model.wire_admin import ReloadBody, SettingChange

NAMES_TOLD = 20
"""Settings that are named in a log line, an audit record or by readiness; the rest is counted."""
REASON_CHARS = 1000

LoadSettings = Callable[[], Settings]
"""Reads the files, the environment and the flags that the node was started with. Blocking. Raises ConfigInvalid."""

Commit = Callable[[], Awaitable[None]]
"""Makes a change that was judged before. Raises only what keeps the log from it."""

Prepare = Callable[[Settings], Awaitable[Commit]]
"""Judges a change as far as that goes without making it. Raises OverlaydError."""

_log = structlog.get_logger("config")


class Step(msgspec.Struct, frozen=True):
    """How a part is told of a change. `owns`: arrays in the settings that it takes as a whole, by the way to them."""

    prepare: Prepare
    owns: tuple[tuple[str, ...], ...] = ()


class Reloader:
    """One for the node."""

    def __init__(
        self, settings: Settings, load: LoadSettings | None, *, steps: Mapping[str, Step],
        reread: Callable[[], Sequence[str]], audit: WriteAudit, metrics: Metrics,
    ) -> None:  # fmt: skip
        """`settings`: those that every part holds; live ones are changed in them. `load`: None where there is nothing
        to read. `steps`: by what `Change.told` says. `reread`: reads anew what settings only point to, all or none."""
        self._settings = settings
        self._load = load
        self._steps = steps
        self._reread = reread
        self._audit = audit
        self._turn = trio.Lock()
        self._waiting: tuple[str, ...] = ()
        self._counter = metrics.counter(
            "overlayd_config_reloads", "Times that the configuration was read anew", "result"
        )
        metrics.gauge(
            "overlayd_config_waiting", "Settings that were changed in the files and wait for a restart"
        ).set_function(lambda: len(self._waiting))

    def __repr__(self) -> str:
        return f"Reloader(waiting={len(self._waiting)})"

    def describe(self) -> str:
        """What waits for a restart, for readiness."""
        return f"a restart is needed for {_some(self._waiting)}" if self._waiting else "as in the files"

    async def reload(self, author: Author | None, is_dry: bool) -> ReloadBody:
        """Takes over what can change now; `is_dry`: only tells. `author`: None for a signal. Checkpoint.

        Raises ConfigInvalid and what else is wrong with what the files say; then nothing is changed.
        """
        async with self._turn:
            if is_dry:
                return _body(await self._differences(), (), is_dry=True)
            try:
                changes, certificates = await self._take_over()
            except OverlaydError as error:
                self._counter.labels("failed").inc()
                await self._tell(author, "failed", {"reason": error.detail[:REASON_CHARS]})
                raise
            self._counter.labels("ok").inc()
            now = tuple(change.name for change in changes if not change.needs_restart)
            self._waiting = tuple(change.name for change in changes if change.needs_restart)
            await self._tell(author, "ok", {"changed": _some(now), "waiting": _some(self._waiting)})
            _log.info(
                "configuration read anew", changed=_some(now), certificates=", ".join(certificates),
                needs_restart=_some(self._waiting),
            )  # fmt: skip
            return _body(changes, certificates, is_dry=False)

    async def _differences(self) -> list[Change]:
        return (await self._read())[1]

    async def _read(self) -> tuple[Settings, list[Change]]:
        """What the files say, and where that differs."""
        wanted = self._settings if self._load is None else await trio.to_thread.run_sync(self._load)
        changes = [
            msgspec.structs.replace(change, told=None) if change.told and change.told not in self._steps else change
            for change in compare(self._settings, wanted)
        ]
        return wanted, changes

    async def _take_over(self) -> tuple[list[Change], Sequence[str]]:
        wanted, changes = await self._read()
        told = dict.fromkeys(change.told for change in changes if change.told)
        commits = [await self._steps[name].prepare(wanted) for name in told]
        certificates = self._reread()
        for commit in commits:
            await commit()
        for step in self._steps.values():  # also where only the lines moved, on which things stand
            for attributes in step.owns:
                put(self._settings, attributes, _value(wanted, attributes))
        for change in changes:
            if change.attributes and not change.needs_restart:
                put(self._settings, change.attributes, _value(wanted, change.attributes))
        return changes, certificates

    async def _tell(self, author: Author | None, result: str, detail: dict[str, str]) -> None:
        record = AuditRecord("config.reload") if author is None else author.record("config.reload", "")
        await self._audit(msgspec.structs.replace(record, result=result, detail=detail))


def refuse(declared_in: str, name: str, error: OverlaydError) -> ConfigInvalid:
    """A refusal of something in a file, with its place."""
    words = "; ".join(f"{flaw.pointer}: {flaw.detail}" for flaw in error.violations) or error.detail
    return ConfigInvalid(f"{declared_in}: {name}: {words}", subject=declared_in, hint=error.hint)


def _body(changes: Iterable[Change], certificates: Iterable[str], *, is_dry: bool) -> ReloadBody:
    told = tuple(
        SettingChange(change.name, change.before, change.after, "restart" if change.needs_restart else "now")
        for change in changes
    )
    return ReloadBody(is_dry, told, tuple(certificates))


def _some(names: Sequence[str]) -> str:
    more = len(names) - NAMES_TOLD
    return ", ".join(names[:NAMES_TOLD]) + (f" and {more} more" if more > 0 else "")


def _value(settings: Settings, attributes: Sequence[str]) -> object:
    found: object = settings
    for word in attributes:
        found = getattr(found, word)
    return found

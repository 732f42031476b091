"""`/v1/admin/backup`: has the node make a backup, and lists those it made."""

from msgspec import UNSET
from quart import Response, request
from quart_trio import QuartTrio

from overlayd.access import require
from overlayd.access.audit import AuditTrail
from overlayd.model.clock import format_time_us
from overlayd.model.wire import encode_wire
from overlayd.model.wire_backup import BackupBody, BackupRunBody, BackupsBody
from overlayd.net.app import answer, author_of, principal_of
from overlayd.net.lane import Lane
from overlayd.net.parameters import Parameters
from overlayd.storage.backup.catalogue import BackupRecord
from overlayd.storage.backup.runner import BackupRun, BackupRunner

ACCEPTED = 202


def add_backup_routes(app: QuartTrio, *, backups: BackupRunner, lane: Lane, trail: AuditTrail) -> None:
    """Adds `GET` and `POST /v1/admin/backup`."""

    @app.get("/v1/admin/backup")
    async def list_backups() -> Response:
        """Every backup that the node remembers."""
        require(principal_of(request), "admin")
        Parameters(request, ())
        async with lane.step_out():
            records = await backups.read_list()
        run = UNSET if backups.last is None else _run_body(backups.last)
        shown = tuple(_body(record) for record in records)
        return answer(encode_wire(BackupsBody(directory=str(backups.place), backups=shown, run=run)))

    @app.post("/v1/admin/backup")
    async def make_backup() -> Response:
        """Begins a backup, to the directory of the settings."""
        require(principal_of(request), "admin")
        Parameters(request, ())
        author = author_of(request)
        async with lane.step_out():
            run = await backups.ask()
            await trail.write(author.record("backup.create", run.record.id))
        return answer(encode_wire(_run_body(run)), ACCEPTED)


def _run_body(run: BackupRun) -> BackupRunBody:
    started_at = format_time_us(run.record.made_us)
    return BackupRunBody(id=run.record.id, state=run.state, started_at=started_at, error=run.error or UNSET)


def _body(record: BackupRecord) -> BackupBody:
    return BackupBody(
        id=record.id, made_at=format_time_us(record.made_us), path=record.path, bytes=record.bytes, log=record.log,
        epoch=record.epoch, entries=record.entries, root=record.root, verified=record.verified, present=record.is_there,
        removed_at=format_time_us(record.removed_us) if record.removed_us else UNSET,
    )  # fmt: skip

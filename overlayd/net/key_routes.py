"""`/v1/keys`: API keys, made, listed, changed, rotated and revoked. A secret is told once, in the answer that makes it."""

from bisect import bisect_right
from typing import Any

import msgspec
import trio
from msgspec import UNSET
from quart import Response, request
from quart_trio import QuartTrio

from overlayd.access import require
from overlayd.access.audit import AuditTrail
from overlayd.access.key_changes import KeyAsk, KeyChanges, KeyPatch
from overlayd.access.keys import Key, KeyBook
from overlayd.access.secret_text import NewSecret
from overlayd.model.clock import Clock, format_time_us
from overlayd.model.wire import encode_wire
from overlayd.model.wire_access import KeyBody, KeyChangeIn, KeyIn, KeyList, KeyMade, KeyRotation, KeySecretBody
from overlayd.net.app import answer, author_of, principal_of
from overlayd.net.body_times import end_us_of, seconds_of
from overlayd.net.json_body import JsonBodies
from overlayd.net.lane import Lane
from overlayd.net.parameters import Parameters

LIST_LIMIT = 100
LIST_LIMIT_MAX = 1000
KEYS_PER_TURN = 1000


def add_key_routes(
    app: QuartTrio, *, keys: KeyBook, changes: KeyChanges, trail: AuditTrail, clock: Clock, lane: Lane,
    bodies: JsonBodies,
) -> None:  # fmt: skip
    """Adds `/v1/keys` and what is below it."""
    routes = _KeyRoutes(keys, changes, trail, clock, lane, bodies)
    one = "/v1/keys/<key>"
    app.add_url_rule("/v1/keys", "keys.list", routes.list_keys, methods=["GET"])
    app.add_url_rule("/v1/keys", "keys.create", routes.create, methods=["POST"])
    app.add_url_rule(one, "keys.show", routes.show, methods=["GET"])
    app.add_url_rule(one, "keys.change", routes.change, methods=["PATCH"])
    app.add_url_rule(one, "keys.revoke", routes.revoke, methods=["DELETE"])
    app.add_url_rule(f"{one}/rotate", "keys.rotate", routes.rotate, methods=["POST"])


class _KeyRoutes:
    """The routes with what they need."""

    def __init__(
        self, keys: KeyBook, changes: KeyChanges, trail: AuditTrail, clock: Clock, lane: Lane, bodies: JsonBodies
    ) -> None:
        self._keys = keys
        self._changes = changes
        self._trail = trail
        self._clock = clock
        self._lane = lane
        self._bodies = bodies

    async def list_keys(self) -> Response:
        """Keys by id, a page at a time."""
        require(principal_of(request), "admin")
        parameters = Parameters(request, ("owner", "limit", "after"))
        limit = parameters.number("limit", minimum=1, maximum=LIST_LIMIT_MAX) or LIST_LIMIT
        owner, ids = parameters.text("owner"), self._keys.ids()
        await self._note_read("keys")
        found: list[KeyBody] = []
        is_more = False
        for number in range(bisect_right(ids, parameters.text("after")), len(ids)):
            if number % KEYS_PER_TURN == 0:
                await trio.lowlevel.checkpoint()
            key = self._keys.get(ids[number])
            if key is None or (owner and key.record.owner != owner):
                continue
            if len(found) == limit:
                is_more = True
                break
            found.append(KeyBody(**_members(key)))
        return answer(encode_wire(KeyList(keys=found, next_after=found[-1].id if is_more else UNSET)))

    async def show(self, key: str) -> Response:
        """One key."""
        require(principal_of(request), "admin")
        Parameters(request, ())
        found = self._changes.known(key)
        await self._note_read(key)
        return answer(encode_wire(KeyBody(**_members(found))))

    async def create(self) -> Response:
        """Makes a key."""
        require(principal_of(request), "admin")
        Parameters(request, ())
        wanted = await self._bodies.read(request, KeyIn, "the key can't be made")
        ask = KeyAsk(
            kind=wanted.kind, title=wanted.title, owner=wanted.owner, scopes=tuple(wanted.scopes),
            roles=tuple(wanted.roles), expires_us=end_us_of(wanted.expires_at, "expires_at"), policy=wanted.policy,
        )  # fmt: skip
        async with self._lane.step_out():
            made, secret = await self._changes.create(ask, author_of(request))
        return _made(made, secret, 201)

    async def change(self, key: str) -> Response:
        """Changes what a key may do, whose it is, when it ends."""
        require(principal_of(request), "admin")
        Parameters(request, ())
        wanted = await self._bodies.read(request, KeyChangeIn, "the key can't be changed")
        patch = KeyPatch(
            title=_given(wanted.title), owner=_given(wanted.owner), policy=_given(wanted.policy),
            scopes=tuple(wanted.scopes) if isinstance(wanted.scopes, list) else None,
            roles=tuple(wanted.roles) if isinstance(wanted.roles, list) else None,
            expires_us=0 if wanted.expires_at is None else end_us_of(wanted.expires_at, "expires_at") or None,
        )  # fmt: skip
        async with self._lane.step_out():
            changed = await self._changes.change(key, patch, author_of(request))
        return answer(encode_wire(KeyBody(**_members(changed))))

    async def rotate(self, key: str) -> Response:
        """Gives a key another secret."""
        require(principal_of(request), "admin")
        Parameters(request, ())
        wanted = await self._bodies.read_or(request, KeyRotation, "the key can't be rotated", KeyRotation())
        async with self._lane.step_out():
            made, secret = await self._changes.rotate(key, seconds_of(wanted.grace, "grace"), author_of(request))
        return _made(made, secret, 200)

    async def revoke(self, key: str) -> Response:
        """Ends a key, and what it let in."""
        require(principal_of(request), "admin")
        Parameters(request, ())
        async with self._lane.step_out():
            await self._changes.revoke(key, author_of(request))
        return Response(b"", status=204)

    async def _note_read(self, subject: str) -> None:
        async with self._lane.step_out():
            await self._trail.write_once(author_of(request).record("keys.read", subject))


def _given(text: str | msgspec.UnsetType) -> str | None:
    return text if isinstance(text, str) else None


def _made(key: Key, secret: NewSecret, status: int) -> Response:
    body = encode_wire(KeyMade(**_members(key), key=secret.text))
    return answer(body, status, location=f"/v1/keys/{key.record.id}", cache_control="no-store")


def _members(key: Key) -> dict[str, Any]:
    record = key.record
    return {
        "id": record.id,
        "kind": record.kind,
        "title": record.title or UNSET,
        "owner": record.owner,
        "scopes": list(record.scopes),
        "roles": list(record.roles),
        "policy": record.policy or UNSET,
        "state": "active" if key.standings else "expired",
        "created_at": format_time_us(record.created_us),
        "created_by": record.created_by,
        "expires_at": format_time_us(record.expires_us) if record.expires_us else UNSET,
        "last_used_at": format_time_us(key.used_us) if key.used_us else UNSET,
        "declared_in": key.declared_in or UNSET,
        "secrets": [
            KeySecretBody(
                prefix=secret.prefix, created_at=format_time_us(secret.created_us),
                expires_at=format_time_us(secret.expires_us) if secret.expires_us else UNSET,
            )
            for secret in record.secrets
            if secret.digest in key.standings
        ],
    }  # fmt: skip

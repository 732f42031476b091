"""Creating streams and changing what they are: judged in the writer, each change an entry of the node."""

import msgspec

from overlayd.model.definition import Definition, encode_definition
from overlayd.model.draft import StreamStateName
from overlayd.model.errors import (
    DefinitionConflict,
    Forbidden,
    InvalidDefinition,
    LimitReached,
    OwnedByConfig,
    SequenceMismatch,
    UnknownStream,
    Violation,
)
from overlayd.model.names import is_node_name, parse_stream_name
from overlayd.storage.group import Group, PendingStream
from overlayd.storage.streams import Owner, Stream


def check_definition(name: str, definition: Definition, *, has_chain: bool) -> None:
    """What can be said before the writer is asked. Raises BadParameter, Forbidden, InvalidDefinition."""
    parse_stream_name(name)
    check_is_changeable(name)
    if definition.confirm.commit != "none" and not has_chain:
        detail = f"confirm.commit is {definition.confirm.commit!r}, but no chain is configured"
        raise InvalidDefinition(
            detail, subject="/confirm/commit", hint='use "none", or have the node follow one: [chain] network',
            violations=[Violation("/confirm/commit", "definition.unsupported", detail)],
        )  # fmt: skip


def check_is_changeable(name: str) -> None:
    """Raises Forbidden for the node's own streams, which nobody defines, stops, erases or deletes."""
    if is_node_name(name):
        raise Forbidden(f"{name} is the node's own stream", subject=name, hint="choose another name")


def define(
    group: Group, name: str, definition: Definition, if_version: int | None, owner: Owner, principal: str
) -> tuple[Stream, bool]:
    """The stream, and whether it was created."""
    pending = group.find(name)
    version = 0 if pending is None else pending.version
    if if_version is not None and if_version != version:
        raise DefinitionConflict(
            f"{name} has definition version {version}, not {if_version}", subject=name,
            hint="read the definition again and decide anew", extra={"definition_version": version},
        )  # fmt: skip
    if pending is None:
        if group.count_streams() >= group.state.limits.streams_max:
            group.state.metrics.count_limit_hit("streams_max")
            raise LimitReached(
                f"the node has {group.state.limits.streams_max} streams, which is its limit", subject=name,
                hint="delete a stream or raise streams_max",
            )  # fmt: skip
        return group.create_stream(name, definition, owner, principal).stream, True
    stream = pending.stream
    if stream.owner == "config" and owner != "config":
        raise OwnedByConfig(
            f"{name} is declared in the config file", subject=name, hint="change it there and reload",
        )  # fmt: skip
    is_same = encode_definition(definition) == encode_definition(pending.definition)
    if not is_same:
        group.redefine(pending, definition, owner, principal)
    elif stream.owner != owner:
        group.set_owner(pending, owner)
    return stream, False


def set_state(group: Group, name: str, state: StreamStateName) -> Stream:
    """The stream."""
    pending = group.find(name)
    if pending is None:
        raise UnknownStream(f"no stream {name}", subject=name)
    if pending.state != state:
        group.set_state(pending, state)
    return pending.stream


class Unchanged(msgspec.Struct, frozen=True):
    """What a stream must still be to be deleted: the one with this hash, this definition version, this newest sequence.

    None: any.
    """

    stream_hash: bytes
    version: int | None = None
    sequence: int | None = None

    def check(self, pending: PendingStream) -> None:
        """Raises DefinitionConflict, SequenceMismatch."""
        name = pending.stream.name
        if pending.stream.stream_hash != self.stream_hash or self.version not in (None, pending.version):
            raise DefinitionConflict(
                f"{name} isn't what it was when its deletion was asked for", subject=name,
                hint="read the definition again and decide anew", extra={"definition_version": pending.version},
            )  # fmt: skip
        if self.sequence not in (None, pending.head.sequence):
            raise SequenceMismatch(
                f"{name} is at sequence {pending.head.sequence}, not {self.sequence}", subject=name,
                hint="packets came meanwhile; look at them and decide anew", extra={"head_sequence": pending.head.sequence},
            )  # fmt: skip


def stop_for_good(group: Group, name: str, only: Unchanged | None) -> Stream:
    """The first step of a deletion: nothing is appended any more, so what was judged holds until the end. The stream."""
    pending = group.find(name)
    if pending is not None and only is not None:
        only.check(pending)
    return set_state(group, name, "stopped")


def release(group: Group, name: str) -> Stream:
    """The stream isn't declared in the config file any more: the API may change it again."""
    pending = group.find(name)
    if pending is None:
        raise UnknownStream(f"no stream {name}", subject=name)
    if pending.stream.owner != "api":
        group.set_owner(pending, "api")
    return pending.stream

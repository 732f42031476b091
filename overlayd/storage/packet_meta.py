"""What is stored of a draft beside its body."""

from overlayd.model.draft import Draft
from overlayd.model.meta import Meta, encode_meta, encode_plain_meta


def meta_of(draft: Draft, version: int, topics: bytes, form: int, csalt: bytes) -> bytes:
    """The meta of a packet's entry. `version`, `topics`: of the definition that judged it. Most have an id, a version and
    a principal, and nothing else."""
    brought = draft.brought
    if not (
        form or draft.type or draft.key or draft.time or draft.source or draft.topics or draft.metadata
        or draft.signature or draft.is_octets or topics or draft.hops or draft.traceparent
        or draft.derived_from or brought
    ):  # fmt: skip
        return encode_plain_meta(draft.id, version, draft.principal)
    return encode_meta(
        Meta(
            draft.id, draft.type, draft.time, draft.source, draft.key, draft.topics, draft.metadata,
            draft.signature, draft.is_octets, version, topics, draft.hops, draft.traceparent,
            draft.principal, draft.derived_from, b"", form, csalt, b"" if brought is None else brought.txid[::-1],
        )
    )  # fmt: skip

"""JSON Schema of the wire bodies, for the served OpenAPI and AsyncAPI documents.

msgspec can describe the bodies, but not a default that it can't encode without a hook. Durations and sizes
are such defaults, so they are described through plain twins of the structs that hold them.
"""

from collections.abc import Sequence
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from overlayd.model.units import Duration, Size

DurationText = Annotated[str, Meta(description="A duration with a unit", examples=["30s", "1h30m", "30d"])]
SizeText = Annotated[str | int, Meta(description="A size with a unit, or bytes", examples=["64KiB", "10GiB"])]
_TEXT_OF: dict[Any, Any] = {Duration: DurationText, Size: SizeText}


def schema_components(types: Sequence[Any], ref_template: str) -> tuple[tuple[dict[str, Any], ...], dict[str, Any]]:
    """A schema for each type, and the components that they refer to (`#/components/schemas/{name}` or the like)."""
    twins: dict[type, type] = {}
    schemas, components = msgspec.json.schema_components(
        [_twin_of(kind, twins) for kind in types], ref_template=ref_template
    )
    for original, twin in twins.items():
        if twin is not original:
            _set_defaults(original, components[original.__name__]["properties"])
    return schemas, components


def _set_defaults(original: type, properties: dict[str, Any]) -> None:
    for field in msgspec.structs.fields(original):
        if field.default is not msgspec.NODEFAULT and field.default is not msgspec.UNSET:
            properties[field.encode_name]["default"] = msgspec.to_builtins(field.default, enc_hook=str)


def _twin_of(kind: Any, twins: dict[type, type]) -> Any:
    """`kind` with every Duration and Size inside it replaced by its text form; `kind` itself if there is none."""
    if kind in _TEXT_OF:
        return _TEXT_OF[kind]
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        if kind not in twins:
            twins[kind] = kind  # a struct that holds itself finds this one; ours never do with units inside
            twins[kind] = _struct_twin(kind, twins)
        return twins[kind]
    if get_origin(kind) is None:
        return kind
    if get_origin(kind) is Annotated:
        inner, *extra = get_args(kind)
        return Annotated[(_twin_of(inner, twins), *extra)]
    parts = tuple(_twin_of(part, twins) if part is not Ellipsis else part for part in get_args(kind))
    return kind if parts == get_args(kind) else _rebuilt(kind, parts)


def _rebuilt(kind: Any, parts: tuple[Any, ...]) -> Any:
    origin = get_origin(kind)
    if origin.__module__ == "types":  # X | Y
        union = parts[0]
        for part in parts[1:]:
            union = union | part
        return union
    return origin[parts]


def _struct_twin(kind: type[msgspec.Struct], twins: dict[type, type]) -> type:
    hints = get_type_hints(kind, include_extras=True)
    fields: list[Any] = []
    is_changed = False
    for field in msgspec.structs.fields(kind):
        twin = _twin_of(hints[field.name], twins)
        is_changed = is_changed or twin != hints[field.name]
        if field.required:
            fields.append((field.name, twin))
        else:
            # A factory that msgspec doesn't know leaves the default out; _set_defaults puts it in.
            fields.append((field.name, twin, msgspec.field(default_factory=lambda: None, name=field.encode_name)))
    if not is_changed:
        return kind
    config = kind.__struct_config__
    return msgspec.defstruct(
        kind.__name__, fields, namespace={"__doc__": kind.__doc__}, module=kind.__module__, kw_only=True,
        tag_field=config.tag_field, tag=config.tag, forbid_unknown_fields=config.forbid_unknown_fields,
    )  # fmt: skip

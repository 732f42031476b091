"""The served AsyncAPI 3.0 document: the live protocol, made from the message structs."""

from typing import Any, get_args

import overlayd
from overlayd.model import wire, wire_agents
from overlayd.model.wire_schema import schema_components

REF = "#/components/schemas/{name}"
_SERVER = (*get_args(wire.ServerMessage), wire_agents.AgentPacketMessage)
_CLIENT = (*get_args(wire.ClientMessage), wire_agents.AckMessage)
CLOSE_CODES = {
    1001: "going away; reconnect",
    1008: "policy: more unread input than allowed; don't reconnect",
    1009: "a message was too big",
    4001: "unauthorized",
    4003: "forbidden",
    4008: "no byte moved, or no pong; reconnect",
    4009: "replaced by a newer client of the same name; don't reconnect",
    4010: "the cursor is older than what is kept (only with on_gap=error)",
    4029: "too many messages",
    4500: "a fault of the server",
}


def _name(kind: type) -> str:
    return kind.__struct_config__.tag  # type: ignore[attr-defined,no-any-return]


def _key(kind: type) -> str:
    """As its name, unless another message of the name stands beside it."""
    return "packet.agent" if kind is wire_agents.AgentPacketMessage else _name(kind)


def _summary(kind: type) -> str:
    return (kind.__doc__ or "").split("\n")[0]


def build_asyncapi() -> dict[str, Any]:
    """The whole document. It depends on nothing but this version of the code."""
    schemas, components = schema_components([*_SERVER, *_CLIENT], ref_template=REF)
    messages = {
        f"{direction}.{_key(kind)}": {
            "name": _name(kind), "title": _name(kind), "summary": _summary(kind),
            "contentType": "application/json", "payload": schema,
        }
        for (direction, kind), schema in zip(
            [*(("server", kind) for kind in _SERVER), *(("client", kind) for kind in _CLIENT)], schemas, strict=True
        )
    }  # fmt: skip
    channel = {"$ref": "#/channels/live"}
    codes = "\n".join(f"- {code}: {words}" for code, words in CLOSE_CODES.items())
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "overlayd live protocol", "version": overlayd.__version__,
            "description": "One message per text frame; subprotocol overlayd.v1, or cloudevents.json for CloudEvents.\n\n"
            f"Close codes:\n\n{codes}",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": {
            "live": {
                "address": "/v1/live",
                "title": "Live packets",
                "description": "The query parameters of GET /v1/live make the first subscription; see /openapi.json.",
                "bindings": {"ws": {"method": "GET"}},
                "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
            }
        },
        "operations": {
            "receiveFromNode": {
                "action": "send", "channel": channel, "summary": "What the node sends",
                "messages": [{"$ref": f"#/channels/live/messages/{n}"} for n in messages if n.startswith("server.")],
            },
            "sendToNode": {
                "action": "receive", "channel": channel, "summary": "What a client may send",
                "messages": [{"$ref": f"#/channels/live/messages/{n}"} for n in messages if n.startswith("client.")],
            },
        },
        "components": {"schemas": components, "messages": messages},
    }  # fmt: skip

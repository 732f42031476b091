"""The served documents: OpenAPI, AsyncAPI, and pages made from them and from the errors, without scripts or internet."""

from collections.abc import Sequence
from html import escape
from typing import Any

import msgspec
from quart import Response
from quart_trio import QuartTrio

from overlayd.model.errors import error_classes
from overlayd.net.asyncapi import build_asyncapi
from overlayd.net.openapi import build_openapi
from overlayd.net.operations import Operation
from overlayd.net.problem import DOCS_PATH

CACHE = {"Cache-Control": "public, max-age=300"}
CLIENT_CODES = "client."
"""Errors that the client library raises by itself; no node answers with one."""
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1d2330; }
h1 { font-size: 1.6rem; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #d5dae3; }
code, pre { font: 14px/1.5 ui-monospace, monospace; } pre { background: #f4f6f9; padding: .8rem; overflow-x: auto; }
details { border: 1px solid #d5dae3; border-radius: 6px; margin: .5rem 0; padding: .5rem .8rem; }
summary { cursor: pointer; } .method { display: inline-block; min-width: 4.5rem; font-weight: 700; color: #0b5cad; }
table { border-collapse: collapse; width: 100%; } td, th { text-align: left; padding: .25rem .6rem .25rem 0; vertical-align: top; }
@media (prefers-color-scheme: dark) { body { background: #14171d; color: #dde3ee; } pre { background: #1e232c; }
  details, h2 { border-color: #39414f; } .method { color: #6db3ff; } a { color: #6db3ff; } }
"""


def add_docs_routes(app: QuartTrio, more: Sequence[Operation] = ()) -> None:
    """Adds /openapi.json, /asyncapi.json, /docs, its style sheet and the page that problems point to. All are built
    once, here. `more`: operations of dialects."""
    openapi, asyncapi = build_openapi(more), build_asyncapi()
    served = {
        "/openapi.json": (msgspec.json.encode(openapi), "application/json"),
        "/asyncapi.json": (msgspec.json.encode(asyncapi), "application/json"),
        "/docs": (render_page(openapi, asyncapi).encode(), "text/html; charset=utf-8"),
        DOCS_PATH: (render_errors().encode(), "text/html; charset=utf-8"),
        "/docs/style.css": (STYLE.encode(), "text/css; charset=utf-8"),
    }
    for path, (body, content_type) in served.items():
        app.add_url_rule(path, f"docs:{path}", _serving(body, content_type), methods=["GET"])


def _serving(body: bytes, content_type: str) -> Any:
    async def serve() -> Response:
        return Response(body, content_type=content_type, headers=CACHE)

    return serve


def render_page(openapi: dict[str, Any], asyncapi: dict[str, Any]) -> str:
    """One page of HTML: every operation, every live message, every schema."""
    parts = [
        _head("overlayd API"),
        f"<h1>overlayd {escape(openapi['info']['version'])}</h1><p>{escape(openapi['info']['description'])} ",
        "Machine-readable: <a href=/openapi.json>OpenAPI 3.1</a>, <a href=/asyncapi.json>AsyncAPI 3.0</a>. ",
        f"<a href={DOCS_PATH}>Errors by their codes</a>.</p>",
        "<pre>curl -d '{\"t\":21}' http://127.0.0.1:7878/v1/streams/weather-001/data</pre>",
    ]
    for tag in openapi["tags"]:
        parts.append(f"<h2>{escape(tag['name'])}</h2>")
        for path, methods in openapi["paths"].items():
            parts += [_operation(m, path, o) for m, o in methods.items() if tag["name"] in o["tags"]]
    parts.append("<h2>Live messages</h2>")
    for message in asyncapi["components"]["messages"].values():
        parts.append(
            f"<details><summary><code>{escape(message['name'])}</code> {escape(message['summary'])}</summary>"
            f"<pre>{_pretty(message['payload'])}</pre></details>"
        )
    parts.append("<h2>Schemas</h2>")
    for name, schema in sorted((openapi["components"]["schemas"] | asyncapi["components"]["schemas"]).items()):
        parts.append(
            f"<details id='{escape(name)}'><summary><code>{escape(name)}</code></summary><pre>{_pretty(schema)}</pre></details>"
        )
    return "".join(parts)


def render_errors() -> str:
    """One page of HTML: every error of the node under its code, where the `type` of a problem leads."""
    rows = [
        f"<tr id='{error.code}'><td><code>{error.code}</code><td>{error.status}<td>{'yes' if error.retryable else 'no'}"
        f"<td>{escape(error.title)}"
        for error in sorted(error_classes(), key=lambda error: (error.status, error.code))
        if not error.code.startswith(CLIENT_CODES)
    ]
    return "".join((
        _head("overlayd errors"),
        "<h1>Errors</h1><p>A problem's <code>detail</code> says what happened, <code>hint</code> what to do. Retryable: ",
        "the same request may succeed later.</p>",
        "<table><tr><th>code<th>status<th>retryable<th>meaning", *rows, "</table>",
    ))  # fmt: skip


def _head(title: str) -> str:
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{escape(title)}</title><link rel=stylesheet href=/docs/style.css>"
    )


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(p['name'])}</code><td>{escape(p['in'])}<td>{escape(p['description'])}"
        for p in operation.get("parameters", ())
    )
    answers = "".join(
        f"<tr><td><code>{status}</code><td>{escape(answer['description'])}"
        for status, answer in operation["responses"].items()
    )
    types = ", ".join(operation.get("requestBody", {}).get("content", ()))
    return (
        f"<details><summary><span class=method>{method.upper()}</span> <code>{escape(path)}</code> "
        f"{escape(operation['summary'])}</summary><p>{escape(operation.get('description', ''))}"
        + (f" Body: {escape(types)}." if types else "")
        + f"</p><table>{rows}</table><table>{answers}</table></details>"
    )


def _pretty(schema: Any) -> str:
    return escape(msgspec.json.format(msgspec.json.encode(schema), indent=2).decode())

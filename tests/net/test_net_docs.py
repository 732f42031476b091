"""The served documents, through Quart's test client."""

from pathlib import Path

from route_rig import open_node

from overlayd.model.errors import error_classes
from overlayd.net.docs_routes import CLIENT_CODES, add_docs_routes


async def test_problems_lead_to_a_page(tmp_path: Path) -> None:
    """The `type` of a problem names a page that is served, and its fragment a place on it; so for every code."""
    async with open_node(tmp_path) as node:
        add_docs_routes(node.app)
        problem = (await node.ask("GET", "/v1/streams/none")).json
        path, _, code = problem["type"].partition("#")
        page = await node.ask("GET", path)
        assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert code == problem["code"]
        for error in error_classes():
            is_served = not error.code.startswith(CLIENT_CODES)
            assert (f"id='{error.code}'".encode() in page.body) == is_served, error.code

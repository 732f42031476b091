"""Parts of paths with an exception: a word that is a resource of its own, with methods of its own."""

import re

from quart_trio import QuartTrio
from werkzeug.routing import BaseConverter, Map


class Unless(BaseConverter):
    """`<unless("policies"):receipt>`: any one part of a path but that word, so that OPTIONS tells each its own methods."""

    part_isolating = True

    def __init__(self, url_map: Map, word: str) -> None:
        super().__init__(url_map)
        self.regex = rf"(?!{re.escape(word)}$)[^/]+"


def know_exceptions(app: QuartTrio) -> None:
    """Lets the app's rules use `unless`."""
    app.url_map.converters["unless"] = Unless

"""What judging a packet by a schema may cost, foreseen from the schema.

The validator runs in one go with the interpreter's lock held, wherever it is called from. A schema of a few
hundred bytes can make it work for years: definitions that refer to the next one twice, forty deep, or a
recursive one that looks at each child twice. So the number of subschemas that can apply to one place of a
packet is counted beforehand, by depth, along with the patterns that can be matched against one character.
"""

from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

import msgspec

from overlayd.pipeline.json_text import measure_depth, outside_strings, pointer_of
from overlayd.pipeline.patterns import PatternCost

NODES_MAX = 10_000
PLACES_MAX = 20_000
"""Characters and classes of all patterns together; compiling them takes about a microsecond each."""

_ROOT = "http://schema.invalid/"
_METASCHEMA_HOSTS = ("http://json-schema.org/", "https://json-schema.org/")
_IN_PLACE = ("not", "if", "then", "else", "extends")
_IN_PLACE_LISTS = ("allOf", "anyOf", "oneOf")
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_ALWAYS = ("contains", "unevaluatedItems", "unevaluatedProperties", "propertyNames")
DATA_KEYWORDS = frozenset(("enum", "const", "default", "examples", "example"))
"""What stands under them is data, whatever it looks like."""

_CEILING = 1e15
_BYTES_MAX = 1 << 40
_APPLY_STEPS = 2.0
_BACKTRACK_STEPS = 13_500.0  # BACKTRACKS at 27 ns each
_METASCHEMA_STEPS = 400.0
_METASCHEMA_CHAR_STEPS = 40.0

Path = tuple[str | int, ...]
Vector = tuple[float, float, float]
"""Steps per place, per character and per string. A step is about 10 ns."""

_ZERO: Vector = (0.0, 0.0, 0.0)


class SchemaTooCostly(ValueError):
    """The schema can't be bounded; `path` says where, `limit` which setting it hits, if it is one."""

    def __init__(self, detail: str, path: Path = (), limit: str = "") -> None:
        super().__init__(detail)
        self.path = path
        self.limit = limit


class SchemaCost(msgspec.Struct, frozen=True):
    """Bounds by depth of the packet: `by_depth[d]` holds for every place at most d levels deep."""

    by_depth: tuple[Vector, ...]

    def steps_for(self, raw: bytes, *, is_exact: bool = False) -> float:
        """An upper bound, in steps, for judging the value with this JSON text.

        Places are counted by their commas and brackets; with `is_exact`, those inside strings don't count.
        """
        depth = min(measure_depth(raw), len(self.by_depth) - 1) if len(self.by_depth) > 1 else 0
        by_place, by_char, by_string = self.by_depth[depth]
        places = _count_places(outside_strings(raw) if is_exact else raw)
        return places * by_place + len(raw) * by_char + raw.count(b'"') / 2 * by_string

    def bytes_within(self, steps_max: float) -> int:
        """The length up to which no text can take more, whatever is in it; -1 where even the smallest might."""
        by_place, by_char, by_string = (max(vector[at] for vector in self.by_depth) for at in range(3))
        each = by_place + by_char + by_string / 2  # every byte a comma and a quote at once
        if by_place > steps_max:
            return -1
        return _BYTES_MAX if each <= 0 else int(min(_BYTES_MAX, (steps_max - by_place) / each))

    def applications_for(self, raw: bytes) -> float:
        """An upper bound for the subschemas that are applied, so also for the mistakes that can be found."""
        depth = min(measure_depth(raw), len(self.by_depth) - 1)
        return _count_places(outside_strings(raw)) * self.by_depth[depth][0] / _APPLY_STEPS


def _count_places(raw: bytes) -> int:
    return raw.count(b",") + raw.count(b"{") + raw.count(b"[") + 1


class _Node:
    """One subschema: what it costs itself, and which others it applies to the same place or to those inside."""

    __slots__ = ("always", "children", "in_place", "own", "path", "times")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.own: Vector = _ZERO
        self.in_place: list[_Node] = []
        self.times = 1.0
        self.children: list[_Node] = []
        self.always: list[_Node] = []


def foresee_cost(schema: Any, depth_max: int, judge: Callable[[str, Path], PatternCost]) -> SchemaCost:
    """The cost of a schema that is well formed. `judge` weighs a pattern and may raise.

    Raises SchemaTooCostly for one that is too large, refers to what it doesn't hold, or refers to itself
    without going deeper into the packet.
    """
    graph = _Graph(schema, judge)
    order = _order_in_place(graph.nodes)
    table: list[Vector] = []
    worst = _ZERO
    below: dict[int, Vector] = {}
    for _ in range(depth_max + 1):
        here = _costs_at(order, below, is_top=not table)
        worst = _most(worst, here[id(graph.root)])
        table.append(worst)
        if here == below:
            break
        below = here
    return SchemaCost(tuple(_trim(table)))


def _costs_at(order: list[_Node], below: dict[int, Vector], *, is_top: bool) -> dict[int, Vector]:
    """The cost of each node at a place `n` levels under where it applies, from that for `n - 1` levels."""
    here: dict[int, Vector] = {}
    for node in order:  # what a node applies in place comes before it
        cost = node.own if is_top else _inside(node, below)
        for other in node.in_place:
            cost = _add(cost, here[id(other)], node.times)
        here[id(node)] = cost
    return here


def _inside(node: _Node, below: dict[int, Vector]) -> Vector:
    cost = _ZERO
    for child in node.children:  # a place inside has one name or index: one of these applies
        cost = _most(cost, below[id(child)])
    for child in node.always:
        cost = _add(cost, below[id(child)], 1.0)
    return cost


def _add(left: Vector, right: Vector, times: float) -> Vector:
    return (
        min(left[0] + right[0] * times, _CEILING),
        min(left[1] + right[1] * times, _CEILING),
        min(left[2] + right[2] * times, _CEILING),
    )


def _most(left: Vector, right: Vector) -> Vector:
    return (max(left[0], right[0]), max(left[1], right[1]), max(left[2], right[2]))


def _trim(table: list[Vector]) -> list[Vector]:
    """Without the tail of equal rows; the last one holds for everything deeper."""
    while len(table) > 1 and table[-1] == table[-2]:
        table.pop()
    return table


def _order_in_place(nodes: list[_Node]) -> list[_Node]:
    """Each node after those that it applies in place. Iterative, for references chain as far as they like."""
    order: list[_Node] = []
    state: dict[int, int] = {}  # 1 being looked at, 2 done
    for start in nodes:
        stack: list[tuple[_Node, Iterator[_Node]]] = []
        if id(start) not in state:
            state[id(start)] = 1
            stack.append((start, iter(start.in_place)))
        while stack:
            node, rest = stack[-1]
            following = next(rest, None)
            if following is None:
                state[id(node)] = 2
                order.append(node)
                stack.pop()
            elif id(following) not in state:
                state[id(following)] = 1
                stack.append((following, iter(following.in_place)))
            elif state[id(following)] == 1:
                raise SchemaTooCostly("refers to itself without going deeper into the packet", node.path)
    return order


class _Graph:
    """All subschemas that can be reached, with references resolved inside the document."""

    def __init__(self, schema: Any, judge: Callable[[str, Path], PatternCost]) -> None:
        self.judge = judge
        self.places = 0
        self.nodes: list[_Node] = []
        self._by_id: dict[int, _Node] = {}
        self._places_of: dict[int, tuple[str, Path]] = {}
        self._resources: dict[str, Any] = {}
        self._anchors: dict[tuple[str, str], Any] = {}
        self._dynamic: dict[str, list[Any]] = {}
        self._todo: list[tuple[Any, _Node]] = []
        self._metaschema = _Node(())
        self._metaschema.own = (_METASCHEMA_STEPS, _METASCHEMA_CHAR_STEPS, 0.0)
        self._metaschema.always = [self._metaschema]
        self.nodes.append(self._metaschema)
        self._document = schema
        self._register(schema)
        self.root = self._node_of(schema, ())
        while self._todo:
            self._fill(*self._todo.pop())

    def _register(self, schema: Any) -> None:
        """Finds every id and anchor. Whatever is an object counts as a subschema here; more names do no harm."""
        stack: list[tuple[Any, str, Path]] = [(schema, _ROOT, ())]
        self._resources[_ROOT] = schema
        count = 0
        while stack:
            here, base, path = stack.pop()
            if isinstance(here, list):
                stack.extend((member, base, (*path, at)) for at, member in enumerate(here))
            if not isinstance(here, dict):
                continue
            count += 1
            if count > NODES_MAX:
                raise SchemaTooCostly(f"holds more than {NODES_MAX} objects")
            base = self._register_names(here, base)
            self._places_of[id(here)] = (base, path)
            stack.extend((member, base, (*path, name)) for name, member in here.items() if name not in DATA_KEYWORDS)

    def _register_names(self, here: dict[str, Any], base: str) -> str:
        for keyword in ("$id", "id"):
            given = here.get(keyword)
            if not isinstance(given, str):
                continue
            uri, fragment = urldefrag(_join(base, given))
            if fragment and given.startswith("#"):
                self._anchors[base, fragment] = here  # drafts 4 to 7 name a place so
            elif uri:
                base = uri
                self._resources.setdefault(uri, here)
        for keyword in ("$anchor", "$dynamicAnchor"):
            if isinstance(name := here.get(keyword), str):
                self._anchors[base, name] = here
                if keyword == "$dynamicAnchor":
                    self._dynamic.setdefault(name, []).append(here)
        if here.get("$recursiveAnchor") is True:
            self._dynamic.setdefault("", []).append(here)
        return base

    def _node_of(self, schema: Any, path: Path) -> _Node:
        found = self._by_id.get(id(schema)) if isinstance(schema, dict) else None
        if found is not None:
            return found
        node = _Node(self._places_of.get(id(schema), ("", path))[1] if isinstance(schema, dict) else path)
        node.own = (_APPLY_STEPS, 0.0, 0.0)
        self.nodes.append(node)
        if isinstance(schema, dict):
            self._by_id[id(schema)] = node
            self._todo.append((schema, node))
        return node

    def _fill(self, schema: dict[str, Any], node: _Node) -> None:
        node.own = self._own_cost(schema, node.path)
        for keyword in _IN_PLACE:
            if keyword in schema:
                node.in_place.append(self._node_of(schema[keyword], (*node.path, keyword)))
        for keyword in _IN_PLACE_LISTS:
            node.in_place += self._nodes_of(schema.get(keyword), (*node.path, keyword))
        for keyword in ("dependentSchemas", "dependencies"):
            node.in_place += self._nodes_of(schema.get(keyword), (*node.path, keyword))
        for keyword in _REFERENCES:
            if isinstance(reference := schema.get(keyword), str):
                node.in_place += self._targets(schema, keyword, reference, (*node.path, keyword))
        # What wasn't evaluated is found by evaluating everything in place once more.
        node.times = 2.0 ** sum(keyword in schema for keyword in ("unevaluatedItems", "unevaluatedProperties"))
        self._fill_children(schema, node)

    def _fill_children(self, schema: dict[str, Any], node: _Node) -> None:
        for keyword in ("properties", "prefixItems"):
            node.children += self._nodes_of(schema.get(keyword), (*node.path, keyword))
        for keyword in ("items", "additionalItems", "additionalProperties"):
            member = schema.get(keyword)
            if isinstance(member, list):
                node.children += self._nodes_of(member, (*node.path, keyword))
            elif keyword in schema:
                node.children.append(self._node_of(member, (*node.path, keyword)))
        node.always += self._nodes_of(schema.get("patternProperties"), (*node.path, "patternProperties"))
        for keyword in _ALWAYS:
            if keyword in schema:
                node.always.append(self._node_of(schema[keyword], (*node.path, keyword)))

    def _nodes_of(self, members: Any, path: Path) -> list[_Node]:
        if isinstance(members, list):
            return [self._node_of(member, (*path, at)) for at, member in enumerate(members)]
        if isinstance(members, dict):
            return [
                self._node_of(member, (*path, name)) for name, member in members.items() if not isinstance(member, list)
            ]
        return []

    def _own_cost(self, schema: dict[str, Any], path: Path) -> Vector:
        """One application, plus what its lists make it compare, plus its patterns."""
        steps, by_char, by_string = _APPLY_STEPS, 0.0, 0.0
        for keyword in ("enum", "required", "type"):
            if isinstance(members := schema.get(keyword), list):
                steps += len(members)
        patterns: list[tuple[str, Path]] = []
        if isinstance(pattern := schema.get("pattern"), str):
            patterns.append((pattern, (*path, "pattern")))
        if isinstance(named := schema.get("patternProperties"), dict):
            patterns += [(pattern, (*path, "patternProperties", pattern)) for pattern in named]
        for pattern, at in patterns:
            cost = self.judge(pattern, at)
            self.places += cost.places
            if self.places > PLACES_MAX:
                raise SchemaTooCostly(f"its patterns together have more than {PLACES_MAX} places", at)
            if cost.is_backtracking:
                by_string += _BACKTRACK_STEPS
            else:
                # Few places never make more states than the engine caches; with many, each may be a step.
                by_char += 0.2 if cost.places <= 12 else 0.6 * cost.places
        return steps, by_char, by_string

    def _targets(self, schema: dict[str, Any], keyword: str, reference: str, path: Path) -> list[_Node]:
        base, _ = self._places_of.get(id(schema), (_ROOT, path))
        uri, fragment = urldefrag(base if not reference else _join(base, reference))
        fragment = unquote(fragment)
        if keyword != "$ref":
            name = fragment if keyword == "$dynamicRef" else ""
            if name in self._dynamic:
                # Which of them it is shows only while validating; the dearest bounds them all.
                return [self._dearest([self._node_of(target, path) for target in self._dynamic[name]], path)]
        if uri not in self._resources and uri.startswith(_METASCHEMA_HOSTS):
            return [self._metaschema]
        target = self._find(uri, fragment)
        if target is None:
            raise SchemaTooCostly(f"refers to {reference[:200]!r}, which isn't in this document", path)
        return [self._node_of(target, path)]

    def _dearest(self, candidates: list[_Node], path: Path) -> _Node:
        if len(candidates) == 1:
            return candidates[0]
        node = _Node(path)
        node.in_place = candidates  # a sum is dearer than the dearest
        self.nodes.append(node)
        return node

    def _find(self, uri: str, fragment: str) -> Any:
        if uri not in self._resources:
            return None
        if not fragment:
            return self._resources[uri]
        if not fragment.startswith("/"):
            return self._anchors.get((uri, fragment))
        here = self._resources[uri]
        for token in fragment[1:].split("/"):
            token = token.replace("~1", "/").replace("~0", "~")
            if isinstance(here, dict) and token in here:
                here = here[token]
            elif isinstance(here, list) and token.isascii() and token.isdigit() and int(token) < len(here):
                here = here[int(token)]
            else:
                return None
        return here


def _join(base: str, reference: str) -> str:
    """As RFC 3986 joins, also for bases such as `urn:` that urllib doesn't join to."""
    if reference.startswith("#"):
        return urldefrag(base)[0] + reference
    return urljoin(base, reference)


def describe_path(path: Path) -> str:
    """The JSON pointer of a place in a definition's schema."""
    return "/schema" + pointer_of(path)

"""Secrets are compared by `hmac.compare_digest` and by nothing else, as far as names tell: read from the syntax tree."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "overlayd").rglob("*.py"))
SECRET_NAME = re.compile(
    r"(^|_)(secrets?|tokens?|tickets?|bearer|passwords?|passphrase|credentials?|signatures?|hmac|mac|api_?key|csalt|nonce)($|_)"
)
DIGEST_NAME = re.compile(r"(^|_)(digests?|hash(es)?)($|_)")
"""Hashes of secrets; elsewhere hashes are public and compared like any other value."""
COMPARERS = {"overlayd/access/secret_text.py", "overlayd/delivery/webhooks/secrets.py"}
PUBLIC = {
    ("overlayd/access/declared_keys.py", "secret.digest in seen"): "of keys in the settings, before anything listens",
    ("overlayd/access/gate.py", "self.has_credentials == self._had_credentials"): "whether there are any",
    ("overlayd/access/key_changes.py", "len(kept) >= settings.secrets_per_key"): "how many there are",
    ("overlayd/access/mutual/sessions.py", "hash(nonce) in session.seen"): "a nonce travels in clear text",
    ("overlayd/bsv/keys.py", "signature[1] != count - 2"): "the length in a DER encoding",
    ("overlayd/net/head.py", "part.strip().lower() == token"): "a word of a header, such as close",
    ("overlayd/pipeline/schema_cost.py", "token in here"): "a part of a JSON pointer",
    ("overlayd/storage/fingerprint.py", "left.csalt == right.csalt"): "of two packets in one request",
    ("overlayd/storage/hashindex.py", "mark != self._secret_mark"): "of the node's own files, at start",
}
"""Comparisons whose names sound secret, with the reason why nobody outside chooses either side."""
Found = tuple[str, str]


def name_of(node: ast.expr) -> str:
    """The last word of what an expression calls its value: `a.b.secret[0]` is `secret`."""
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Subscript):
        return name_of(node.value)
    if isinstance(node, ast.Call):
        return name_of(node.func)
    return ""


def comparisons_of(path: str, tree: ast.AST) -> Iterator[Found]:
    """Comparisons by value of what sounds secret. Empty texts, None and numbers tell nothing of a secret's content."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Compare):
            continue
        sides = [node.left, *node.comparators]
        operators = (ast.Eq, ast.NotEq, ast.In, ast.NotIn, ast.Lt, ast.Gt, ast.LtE, ast.GtE)
        if not any(isinstance(operator, operators) for operator in node.ops):
            continue
        if any(isinstance(side, ast.Constant) or ast.unparse(side) == "os.sep" for side in sides):
            continue  # a fixed text in the source is no secret
        names = [name_of(side) for side in sides]
        is_access = path.startswith("overlayd/access/")
        if any(SECRET_NAME.search(name) or (is_access and DIGEST_NAME.search(name)) for name in names):
            yield path, ast.unparse(node)


def test_nothing_else_compares_secrets() -> None:
    """A comparison that stops at the first difference tells how much of a guess was right."""
    found = set()
    for file in FILES:
        path = str(file.relative_to(ROOT))
        found |= set(comparisons_of(path, ast.parse(file.read_text("utf-8"))))
    assert found - set(PUBLIC) == set()


def test_compare_digest_stands_where_it_is_known() -> None:
    """So that there is one place to read for each kind of secret."""
    found = set()
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Attribute | ast.Name) and name_of(node) == "compare_digest":
                found.add(str(file.relative_to(ROOT)))
    assert found == COMPARERS


@pytest.mark.parametrize(
    ("text", "is_found"),
    [
        ("given == secret", True), ("self.token != other", True), ("ticket.digest == digest", True), ("key in tokens", True),
        ("secret is None", False), ("secret == ''", False), ("name == other", False), ("api_key > x", True),
    ],
)  # fmt: skip
def test_the_search_finds_what_it_is_for(text: str, is_found: bool) -> None:
    """A test that can't fail would be a defect."""
    assert bool(list(comparisons_of("overlayd/access/x.py", ast.parse(text)))) is is_found

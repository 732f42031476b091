"""What a reload finds: differences by name, secrets hidden, and which of them can change now."""

import ast
from pathlib import Path

import overlayd
from overlayd.config import load_settings
from overlayd.config.changes import compare
from overlayd.config.live import FIXED_LIMITS, FIXED_RATES, LIVE, TOLD, is_live, put
from overlayd.config.load import settings_shape
from overlayd.config.settings import Settings
from overlayd.model.limits import Limits

SOURCE = Path(overlayd.__file__).parent
PER_REQUEST = {
    "net/request_body.py": "one for each request",
    "net/publish_lines.py": "one for each upload",
}
"""Where a constructor may read a setting that changes: what it makes doesn't live long."""


def settings_of(tmp_path: Path, text: str) -> Settings:
    """Those of a file."""
    file = tmp_path / "config.toml"
    file.write_text(text)
    return load_settings(file, environ={}).settings


def test_equal_files_differ_in_nothing(tmp_path: Path) -> None:
    """Reading the same twice gives no change, with every array and table in use."""
    text = (
        '[limits]\nsessions_max = 5\n[[streams]]\nname = "a"\n[[keys]]\nname = "k"\nfile = "/k"\n'
        'scopes = ["publish:a"]\n[[subscriptions]]\nname = "s"\nkind = "pull"\nstreams = ["a"]\n'
    )
    assert compare(settings_of(tmp_path, text), settings_of(tmp_path, text)) == []


def test_every_kind_of_difference_is_named(tmp_path: Path) -> None:
    """Keys, rows of arrays, streams and subscriptions, each with its effect."""
    before = settings_of(tmp_path, '[limits]\nsessions_max = 5\n[[streams]]\nname = "a"\n[[streams]]\nname = "b"\n')
    after = settings_of(
        tmp_path,
        '[limits]\nsessions_max = 6\nreaders = 3\n[log]\nlevel = "error"\n[rates]\npublish_per_address = "5/s"\n'
        '[storage]\nsync = "extra"\n[[streams]]\nname = "a"\ntitle = "A"\n[[streams]]\nname = "c"\n'
        '[[subscriptions]]\nname = "s"\nkind = "pull"\nstreams = ["a"]\n',
    )
    found = {change.name: (change.before, change.after, change.told) for change in compare(before, after)}
    assert found == {
        "limits.sessions_max": ("5", "6", ""),
        "limits.readers": (str(Limits().readers), "3", None),
        "log.level": ('"info"', '"error"', "log"),
        "rates.publish_per_address": ('""', '"5/s"', "rates"),
        "storage.sync": ('"full"', '"extra"', None),
        "streams.a.title": ('""', '"A"', "streams"),
        "streams.b": ("declared", "", "streams"),
        "streams.c": ("", "declared", "streams"),
        "subscriptions.s": ("", "declared", "subscriptions"),
    }


def test_what_is_put_reaches_everybody_who_holds_the_settings(tmp_path: Path) -> None:
    """The struct that parts hold changes itself; the defaults of another start don't."""
    running, wanted = settings_of(tmp_path, ""), settings_of(tmp_path, "[limits]\nsessions_max = 6\n")
    held = running.limits
    (change,) = compare(running, wanted)
    put(running, change.attributes, 6)
    assert held.sessions_max == 6
    assert compare(running, wanted) == []
    assert settings_of(tmp_path, "").limits.sessions_max == Limits().sessions_max != 6


def test_what_is_said_to_be_live_or_fixed_exists() -> None:
    """A name that nobody knows would be a promise about nothing."""
    names = {key.name for key in settings_shape().keys.values()}
    tables = {name.partition(".")[0] for name in names} | {".".join(path) for path in settings_shape().arrays}
    assert names >= LIVE
    assert names >= FIXED_RATES
    assert {f"limits.{name}" for name in FIXED_LIMITS} <= names
    assert set(TOLD) <= names | tables


def test_live_settings_are_read_where_they_are_used() -> None:
    """No constructor of something that lives long keeps a copy of a setting that may change: it would go on with the
    old one."""
    live = {key.path[-1] for key in settings_shape().keys.values() if is_live(key)}
    copies = [
        f"{file.relative_to(SOURCE)}:{node.lineno} {ast.unparse(node)}"
        for file in sorted(SOURCE.rglob("*.py"))
        if str(file.relative_to(SOURCE)) not in PER_REQUEST
        for constructor in ast.walk(ast.parse(file.read_text()))
        if isinstance(constructor, ast.FunctionDef) and constructor.name in ("__init__", "__post_init__")
        for node in ast.walk(constructor)
        if isinstance(node, ast.Attribute) and node.attr in live and _is_settings(node.value)
    ]
    assert copies == []


def _is_settings(owner: ast.expr) -> bool:
    word = owner.attr if isinstance(owner, ast.Attribute) else owner.id if isinstance(owner, ast.Name) else ""
    return word.strip("_") in {"settings", "limits", "asking"} or word.endswith("_settings")


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    """A setting that is secret is told of without its values, and so is a subscription's body."""
    hashes = [f"sha256:{digit * 64}" for digit in "12"]
    before, after = (
        settings_of(
            tmp_path,
            f'[agentpipe]\nbridge_key = "ap_live_{word}"\n[[keys]]\nname = "k"\nscopes = ["read:a"]\nhashes = ["{value}"]\n'
            f'[[subscriptions]]\nname = "s"\nkind = "webhook"\nstreams = ["a"]\nwebhook = {{url = "https://{word}.example"}}\n',
        )
        for word, value in zip(("0" * 32, "1" * 32), hashes, strict=True)
    )  # fmt: skip
    changes = compare(before, after)
    assert {change.name: (change.before, change.after) for change in changes} == {
        "agentpipe.bridge_key": ("(hidden)", "(hidden)"),
        "keys[k].hashes": ("(hidden)", "(hidden)"),
        "subscriptions.s": ("", "other webhook"),
    }

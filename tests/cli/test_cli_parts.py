"""Commands without a node: help, usage, exit codes, completion, input splitting."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import overlayd
from overlayd.cli import _COMMANDS, cli
from overlayd.cli.exits import CONFIG, FAILED, TEMPORARY, UNREACHABLE, USAGE, code_of
from overlayd.cli.packet_input import PacketInput
from overlayd.cli.target import resolve
from overlayd.model.errors import (
    ConfigInvalid,
    DirectoryInUse,
    IntakeBusy,
    NodeUnreachable,
    OverlaydError,
    SchemaViolation,
)

ROOT = Path(__file__).parents[2]


def run(*arguments: str, stdin: bytes = b"", env: dict[str, str] | None = None):
    """Runs the command in this process."""
    return CliRunner().invoke(cli, arguments, input=stdin, env=env, prog_name="overlayd")


def test_help_names_every_command_and_every_exit_code() -> None:
    """A person finds out from --help alone what there is and what the codes mean."""
    shown = run("--help").output
    for name in _COMMANDS:
        assert re.search(rf"^  {name} ", shown, re.M)
    for code in ("0", "1", "2", "69", "75", "78", "130"):
        assert re.search(rf"^ +{code}  \w", shown, re.M)


@pytest.mark.parametrize("name", _COMMANDS)
def test_every_command_loads_and_has_help(name: str) -> None:
    """Each lazily named module holds the command it promises; its options are explained."""
    result = run(name, "--help")
    assert result.exit_code == 0
    assert result.output.startswith(f"Usage: overlayd {name}")


def test_version() -> None:
    """The first line as other tools print it, then the libraries."""
    lines = run("--version").output.splitlines()
    assert lines[0] == f"overlayd {overlayd.__version__}"
    assert len(lines) == 3
    assert "SQLite" in lines[1]
    assert "trio" in lines[2]


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("tail",),
        ("tail", "x", "--after", "e1aaaaaaaa-1", "--from", "now"),
        ("tail", "x", "--format", "xml"),
        ("publish",),
        ("publish", "x", "--id-prefix", "a", "--content-ids"),
        ("publish", "x", "no-such-file"),
        ("run", "--listen", "nowhere"),
        ("run", "--demo-rate", "fast"),
        ("completion", "tcsh"),
        ("streams", "define", "x", "--schema", "no-such-file"),
    ],
)
def test_wrong_usage_exits_2(arguments: tuple[str, ...]) -> None:
    """Before anything is connected or started."""
    assert run(*arguments).exit_code == USAGE


def test_a_mistyped_command_is_guessed() -> None:
    """The nearest name is offered."""
    assert "Did you mean 'streams'?" in run("steams").output


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NodeUnreachable("x", is_sent=False), UNREACHABLE),
        (DirectoryInUse("x"), TEMPORARY),
        (IntakeBusy("x"), TEMPORARY),
        (ConfigInvalid("x"), CONFIG),
        (SchemaViolation("x"), FAILED),
    ],
)
def test_errors_become_exit_codes(error: OverlaydError, code: int) -> None:
    """sysexits.h, where it has a fitting one."""
    assert code_of(error) == code


@pytest.mark.parametrize("command", [("node",), ("tail", ">"), ("streams",), ("smoke",), ("sessions", "list")])
def test_an_absent_node_exits_69_without_a_traceback(command: tuple[str, ...], tmp_path: Path) -> None:
    """With words that name the socket."""
    result = (
        run(*command, "--data", str(tmp_path))
        if command != ("streams",)
        else run("streams", "list", "--data", str(tmp_path))
    )
    assert result.exit_code == UNREACHABLE
    assert "overlayd.sock" in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_name_the_command(shell: str) -> None:
    """The script asks the program itself, so that it never goes stale."""
    script = run("completion", shell).output
    assert f"_OVERLAYD_COMPLETE={shell}_complete" in script


def test_completion_completes(tmp_path: Path) -> None:
    """What the script asks for comes back."""
    environment = os.environ | {
        "_OVERLAYD_COMPLETE": "bash_complete", "COMP_WORDS": "overlayd str", "COMP_CWORD": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", "from overlayd.cli import main; main()"], env=environment, capture_output=True, text=True
    )
    assert done.stdout == "plain,streams\n"


def test_addresses_come_from_flags_then_environment_then_default(tmp_path: Path) -> None:
    """An address beats a directory, the command line beats the environment."""
    environment = {"OVERLAYD_URL": "http://env:1", "STATE_DIRECTORY": "/state:/other"}
    assert resolve("d", "http://flag:1", None, environment).url == "http://flag:1"
    assert resolve("d", None, None, environment).url == "unix:d/overlayd.sock"
    assert resolve(None, None, None, environment).url == "http://env:1"
    assert resolve(None, None, None, {"STATE_DIRECTORY": "/state"}).url == "unix:/state/overlayd.sock"
    assert resolve(None, None, None, {}).url == "unix:overlayd-data/overlayd.sock"


def test_small_commands_load_no_server() -> None:
    """`--help` loads next to nothing, `tail` and `publish` neither Quart nor the storage."""
    script = (
        "import sys; from overlayd.cli import cli; from click.testing import CliRunner;"
        "CliRunner().invoke(cli, ['--help']); assert 'httpx' not in sys.modules and 'trio' not in sys.modules;"
        "CliRunner().invoke(cli, ['tail', '--help']); CliRunner().invoke(cli, ['publish', '--help']);"
        "print([name for name in ('quart', 'hypercorn', 'aiosqlite', 'overlayd.storage', 'structlog') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def packets(text: bytes, **options: object) -> list[bytes]:
    """What would be published."""
    return list(PacketInput(io.BytesIO(text), **options))  # type: ignore[arg-type]


def test_one_object_a_line_is_ndjson() -> None:
    """Blank lines don't count as packets, but as lines."""
    source = PacketInput(io.BytesIO(b'{"data":1}\n\n  \n{"data":2,"id":"x"}\n{"data":3}'), id_prefix="p-")
    assert list(source) == [b'{"id":"p-1","data":1}', b'{"data":2,"id":"x"}', b'{"id":"p-5","data":3}']
    assert [source.place_of(number) for number in (1, 2, 3)] == [1, 4, 5]
    assert source.without_id == 0


def test_an_object_over_many_lines_is_one_packet() -> None:
    """Pretty-printed JSON is recognized by its first line, which is no whole value."""
    assert [msgspec.json.decode(item) for item in packets(b'{\n "data": {\n  "t": 1.50\n }\n}\n')] == [
        {"data": {"t": 1.5}}
    ]


@pytest.mark.parametrize(
    "text",
    [b'[{"data":1.50},{"data":2}]', b'[\n  {"data":1.50},\n  {"data":2}\n]\n', b'\n\n[{"data":1.50},\n{"data":2}]'],
)
def test_an_array_is_its_elements_verbatim(text: bytes) -> None:
    """On one line or many; digits aren't touched."""
    assert packets(text) == [b'{"data":1.50}', b'{"data":2}']


def test_bare_values_become_data() -> None:
    """Values a line of any kind; an array alone is its elements, several lines of arrays are values."""
    assert packets(b'21\n"x"\n[1,2]\n', is_bare=True) == [b'{"data":21}', b'{"data":"x"}', b'{"data":[1,2]}']
    assert packets(b"[1,2]\n[3]\n", is_bare=True) == [b'{"data":[1,2]}', b'{"data":[3]}']
    assert packets(b"[1,2]\n", is_bare=True) == [b'{"data":1}', b'{"data":2}']
    assert packets(b"[1,2]\n", is_bare=True, form="ndjson") == [b'{"data":[1,2]}']
    assert packets(b'{"id":"mine"}', is_bare=True, id_prefix="p") == [b'{"id":"p1","data":{"id":"mine"}}']


def test_content_ids_are_the_same_for_the_same_text() -> None:
    """So that a repeat is recognized, and two equal lines are one packet."""
    first, second, third = (
        msgspec.json.decode(item)["id"] for item in packets(b'{"data":1}\n{"data":1}\n{"data":2}', has_content_ids=True)
    )
    assert first == second != third
    assert len(first) == 32


def test_broken_lines_travel_as_they_are() -> None:
    """The node says what is wrong with them, by line; nothing here hides it."""
    assert packets(b'{"data":1}\n{"data":\nnull\n{}', id_prefix="p") == [
        b'{"id":"p1","data":1}', b'{"id":"p2","data":', b"null", b'{"id":"p4"}',
    ]  # fmt: skip


def test_input_that_is_no_json_at_all_is_a_usage_error() -> None:
    """With a hint for the case that only the first line is broken."""
    result = run("publish", "s", stdin=b"{nonsense\n{more", env={"OVERLAYD_URL": "http://127.0.0.1:9"})
    assert result.exit_code == UNREACHABLE  # the node is looked for first
    with pytest.raises(Exception, match="--input ndjson"):
        packets(b"{nonsense\n{more")


@given(
    st.lists(
        st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3)),
        max_size=12,
    ),
    st.booleans(),
)
def test_values_survive_every_form(values: list[object], is_array: bool) -> None:
    """As an array or a value a line (said so), every value comes out once and in order."""
    texts = [msgspec.json.encode(value) for value in values]
    if is_array:
        found = packets(b"[" + b",".join(texts) + b"]", is_bare=True, form="json")
    else:
        found = packets(b"\n".join(texts), is_bare=True, form="ndjson")
    assert found == [b'{"data":' + text + b"}" for text in texts]

"""The commands as a person types them, against a real node."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import msgspec
import pytest
from click.testing import CliRunner
from node_process import Node
from real_waiting import PATIENCE_S

from overlayd.cli import cli
from overlayd.cli.exits import CONFIG, FAILED, OK, SIGNED_ONLY, TEMPORARY, USAGE

ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("OVERLAYD_")}


class Done(msgspec.Struct):
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


def command(*arguments: object, stdin: str = "", **env: str) -> Done:
    """Runs a command in this process: it talks to the node's all the same."""
    unset = {name: None for name in os.environ if name.startswith("OVERLAYD_")}
    result = CliRunner().invoke(cli, [str(item) for item in arguments], input=stdin, env=unset | env)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return Done(result.exit_code, result.stdout, result.stderr)


def process(*arguments: object) -> Done:
    """Runs a command as a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "overlayd", *map(str, arguments)], capture_output=True, text=True, timeout=PATIENCE_S,
        env=ENVIRONMENT,
    )  # fmt: skip
    return Done(done.returncode, done.stdout, done.stderr)


def on(node: Node, *arguments: object, stdin: str = "") -> Done:
    """A command on the node's Unix socket."""
    return command(*arguments, "--data", node.directory, stdin=stdin)


def started(*arguments: object) -> "subprocess.Popen[str]":
    """A command that goes on."""
    return subprocess.Popen(
        [sys.executable, "-m", "overlayd", *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=ENVIRONMENT | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip


def finished(running: "subprocess.Popen[str]") -> tuple[int, str, str]:
    """Its code and what is left of its output."""
    out, err = running.communicate(timeout=PATIENCE_S)
    return running.returncode, out, err


def test_publish_says_what_became_of_every_line(node: Node) -> None:
    """Rejected lines are named and exit 1; without ids a repeat is warned of."""
    done = on(node, "publish", "cli.lines", stdin='{"data":1}\n\n{"data":2,"id":"a"}\n{"dat":3}\n')
    assert done.returncode == FAILED
    assert done.stdout == "cli.lines: 2 appended, 1 rejected; sequence 1 to 2\n"
    assert "line 4: " in done.stderr
    assert "would append them again" in done.stderr


def test_publish_is_safe_to_repeat_with_ids(node: Node) -> None:
    """By line number, by content, or as the input has them."""
    for option in (("--id-prefix", "f-"), ("--content-ids",)):
        stream = f"cli.repeat{len(option)}"
        for appended, there in ((3, 0), (0, 3)):
            done = on(node, "publish", stream, *option, "--json", "--bare", stdin="1\n2\n3\n")
            assert done.returncode == OK, done.stderr
            summary = msgspec.json.decode(done.stdout)
            assert (summary["accepted"], summary["duplicates"]) == (appended, there)
            assert done.stderr == ""
    assert on(node, "streams", "show", "cli.repeat2").stdout.count("3") > 0


def test_publish_takes_a_file_and_an_array(node: Node, tmp_path: Path) -> None:
    """Places in an array are told as packets."""
    file = tmp_path / "packets.json"
    file.write_text('[\n  {"data": 1, "id": "a"},\n  {"data": 2, "id": 7}\n]\n')
    done = on(node, "publish", "cli.array", file)
    assert done.returncode == FAILED
    assert "packet 2: /id" in done.stderr


def test_tail_prints_follows_and_tells_its_cursor(node: Node) -> None:
    """From the beginning, in every format; Ctrl-C ends it cleanly; the cursor leads on."""
    on(node, "publish", "cli.tail", "--bare", stdin='{"t": 1.50}\n{"t": 2}\n')
    payloads = on(node, "tail", "cli.tail", "--from", "beginning", "-n", "2", "--format", "payload", "--verify")
    assert payloads.returncode == OK
    assert payloads.stdout == '{"t": 1.50}\n{"t": 2}\n'
    text = on(node, "tail", "cli.tail", "--from", "last", "-n", "1", "--format", "{stream_id}={data_payload}")
    assert text.stdout == 'cli.tail={"t": 2}\n'
    cursor = re.search(r"cursor (\S+)", text.stderr)
    assert cursor is not None
    tailing = started("tail", "cli.tail", "--after", cursor[1], "--format", "json", "--data", node.directory)
    on(node, "publish", "cli.tail", "--bare", stdin="3\n")
    assert tailing.stdout is not None
    message = msgspec.json.decode(tailing.stdout.readline())
    assert (message["type"], message["packet"]["data_payload"]) == ("packet", 3)
    tailing.send_signal(signal.SIGINT)
    code, out, err = finished(tailing)
    assert code == 128 + signal.SIGINT
    assert (out, err) == ("", f"cursor {message['cursor']}\n")


def test_tail_filters_in_the_node(node: Node) -> None:
    """A refused filter is told with the node's words."""
    done = on(node, "tail", "cli.tail", "--filter", "data.t >", "-n", "1")
    assert done.returncode == FAILED
    assert "not a CEL expression" in done.stderr
    assert "Traceback" not in done.stderr


def test_tail_lasts_over_a_restart(tmp_path: Path) -> None:
    """The node stops and comes back on the same socket: nothing is missing, nothing comes twice."""
    first = Node(tmp_path / "data").wait_ready()
    tailing = started("tail", "restart", "--from", "beginning", "--format", "payload", "--data", first.directory)
    on(first, "publish", "restart", "--bare", "-q", stdin="1\n2\n")
    assert tailing.stdout is not None
    assert [tailing.stdout.readline() for _ in range(2)] == ["1\n", "2\n"]
    assert first.stop() == OK
    second = Node(tmp_path / "data").wait_ready()
    on(second, "publish", "restart", "--bare", "-q", stdin="3\n")
    assert tailing.stdout.readline() == "3\n"
    tailing.send_signal(signal.SIGTERM)
    code, out, err = finished(tailing)
    assert (code, out) == (128 + signal.SIGTERM, "")
    assert "connection lost" in err
    assert second.stop() == OK


def test_streams_from_definition_to_deletion(node: Node) -> None:
    """Every verb of the group, over the Unix socket."""
    done = on(node, "streams", "define", "cli.defined", "--title", "T", "--max-age", "1d", "--tag", "x")
    assert done.stdout == "cli.defined: definition version 1\n"
    shown = msgspec.json.decode(on(node, "streams", "show", "cli.defined", "--json").stdout)
    assert (shown["title"], shown["retention"]["max_age"], shown["tags"]) == ("T", "1d", ["x"])
    assert "cli.defined" in on(node, "streams").stdout
    assert msgspec.json.decode(on(node, "streams", "list", "--tag", "x", "--json").stdout)["stream"] == "cli.defined"
    assert on(node, "streams", "pause", "cli.defined").stdout == "cli.defined is paused\n"
    assert on(node, "publish", "cli.defined", "--bare", stdin="1").returncode == TEMPORARY
    assert on(node, "streams", "resume", "cli.defined").returncode == OK
    assert on(node, "publish", "cli.defined", "--bare", stdin="1").returncode == OK
    assert on(node, "streams", "stop", "cli.defined").stdout == "cli.defined is stopped\n"
    assert on(node, "streams", "delete", "cli.defined", stdin="n\n").returncode == FAILED
    assert on(node, "streams", "delete", "cli.defined", stdin="y\n").stdout == "deleted cli.defined with 1 packets\n"
    assert on(node, "streams", "show", "cli.defined").returncode == FAILED


def test_a_definition_comes_from_a_file_too(node: Node, tmp_path: Path) -> None:
    """Standard input, a schema beside it, and what is no definition."""
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "integer", "maximum": 1.0}')
    done = on(node, "streams", "define", "cli.file", "-", "--schema", schema, stdin='{"title": "F"}')
    assert done.returncode == OK, done.stderr
    assert on(node, "publish", "cli.file", "--bare", stdin="2").returncode == FAILED
    assert on(node, "streams", "define", "cli.file", "-", stdin="[]").returncode == USAGE
    wrong = on(node, "streams", "define", "cli.file", "-", stdin='{"titel": "F"}')
    assert wrong.returncode == FAILED
    assert "titel" in wrong.stderr


def test_sessions_are_listed_and_ended(node: Node) -> None:
    """What a tail reads is shown; ending it makes it come back or stop, without a traceback."""
    tailing = started("tail", "cli.sessions", "--data", node.directory)
    listed: list[str] = []
    while not listed:
        listed = [line for line in on(node, "sessions").stdout.splitlines() if "cli.sessions" in line]
    assert "websocket" in listed[0]
    assert on(node, "sessions", "end", listed[0].split()[0]).returncode == OK
    tailing.terminate()
    assert "Traceback" not in finished(tailing)[2]


def test_node_and_smoke(node: Node) -> None:
    """Who it is; and the whole way of a packet, cleaned up over the Unix socket, left over loopback."""
    shown = msgspec.json.decode(on(node, "node", "--json").stdout)
    assert shown["ready"]["ready"]
    assert shown["node"]["log"] in on(node, "node").stdout
    report = msgspec.json.decode(on(node, "smoke", "--json").stdout)
    assert report["passed"]
    assert [step["step"] for step in report["steps"]][-1] == "clean up"
    left = command("smoke", node.url)
    assert left.returncode == OK
    name = re.search(r"left +stream (smoke-\w+)", left.stderr)
    assert name is not None
    assert on(node, "streams", "delete", "-y", name[1]).returncode == OK


def test_a_proof_from_the_node_is_verified(node: Node, tmp_path: Path) -> None:
    """What curl saves, `verify` takes."""
    on(node, "publish", "cli.proof", "--bare", stdin='{"secret": "x"}')
    file = tmp_path / "proof.json"
    file.write_bytes(httpx.get(f"{node.url}/v1/streams/cli.proof/packets/1/proof").content)
    assert on(node, "verify", file).returncode == SIGNED_ONLY
    tlog = httpx.get(f"{node.url}/v1/streams/cli.proof/packets/1/proof", params={"format": "tlog-proof"}).text
    assert on(node, "verify", "-", stdin=tlog).returncode == SIGNED_ONLY
    assert on(node, "verify").returncode == OK


def test_the_environment_names_the_node(node: Node, tmp_path: Path) -> None:
    """OVERLAYD_URL, and a directory's default place."""
    assert command("node", OVERLAYD_URL=node.url).returncode == OK
    assert command("node", STATE_DIRECTORY=str(node.directory)).returncode == OK


def test_a_second_node_on_the_directory_exits_75(node: Node) -> None:
    """And leaves the first one alone."""
    done = process("run", "--data", node.directory, "--listen", "127.0.0.1:0")
    assert done.returncode == TEMPORARY
    assert "another daemon holds" in done.stderr
    assert on(node, "node").returncode == OK


@pytest.mark.parametrize("content", ["[listen]\ntpc = []\n", "nonsense", "[limits]\npacket_bytes = '1 furlong'\n"])
def test_a_wrong_configuration_exits_78(tmp_path: Path, content: str) -> None:
    """`run` and `check-config` agree, and name file and line."""
    file = tmp_path / "config.toml"
    file.write_text(content)
    for arguments in (("run", "--data", tmp_path / "data"), ("check-config",)):
        done = command(*arguments, "--config", file)
        assert done.returncode == CONFIG
        assert f"{file}:" in done.stderr
    assert not (tmp_path / "data").exists()


def test_check_config_shows_where_settings_come_from(tmp_path: Path) -> None:
    """Flag beats environment beats file beats default, and each is named."""
    file = tmp_path / "config.toml"
    file.write_text('[node]\nname = "from-file"\n[log]\nlevel = "debug"\n')
    done = command(
        "check-config", "--config", file, "--data", tmp_path, "--listen", "127.0.0.1:0", "--json", "--changed",
        OVERLAYD_LOG__LEVEL="error",
    )  # fmt: skip
    rows = [msgspec.json.decode(line) for line in done.stdout.splitlines()]
    origins = {row["key"]: row["from"] for row in rows}
    assert origins["node.name"] == f"{file}:2"
    assert origins["log.level"] == "OVERLAYD_LOG__LEVEL"
    assert origins["storage.dir"] == "--data"
    assert origins["listen.tcp"] == "--listen"


def test_init_writes_once(tmp_path: Path) -> None:
    """Keys and configuration are made, usable, private, and never overwritten."""
    directory = tmp_path / "new"
    assert command("init", "--data", directory).returncode == OK
    key = directory / "keys" / "log.ed25519"
    assert key.stat().st_mode & 0o777 == 0o600
    before = (key.read_bytes(), (directory / "config.toml").read_bytes())
    again = command("init", "--data", directory)
    assert again.stdout.count("kept") == 2
    assert (key.read_bytes(), (directory / "config.toml").read_bytes()) == before
    assert command("check-config", "--config", directory / "config.toml", "--changed").returncode == OK
    log_id = again.stdout.split()[-1]
    running = Node(directory, "--config", str(directory / "config.toml")).wait_ready()
    assert log_id in on(running, "node").stdout
    assert running.stop() == OK


def test_run_listens_where_it_is_told(tmp_path: Path) -> None:
    """Several addresses, a Unix socket among them; each TCP one is printed."""
    path = tmp_path / "further.sock"
    running = Node(tmp_path / "data", "--listen", "127.0.0.1:0", "--listen", f"unix:{path}").wait_ready()
    assert command("node", "--url", f"unix:{path}").returncode == OK
    assert running.stop() == OK
    assert sum(line.startswith("listening on http://127.0.0.1:") for line in running.output) == 2


def test_tail_into_a_closed_pipe_ends_quietly(node: Node) -> None:
    """`overlayd tail … | head -1`: no traceback, and the cursor is told."""
    on(node, "publish", "cli.pipe", "--bare", "-q", stdin="1\n2\n3\n")
    tailing = started("tail", "cli.pipe", "--from", "beginning", "--data", node.directory)
    assert tailing.stdout is not None
    tailing.stdout.close()
    assert tailing.stderr is not None
    said = tailing.stderr.read()
    tailing.stderr.close()
    assert tailing.wait(PATIENCE_S) == FAILED
    assert said.startswith("cursor ")
    assert "Traceback" not in said

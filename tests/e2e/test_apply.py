"""`overlayd apply`: a node's objects in line with a file, once and for all; drift told; nothing taken that matters."""

import subprocess
from pathlib import Path

import httpx
import msgspec
import pytest
from node_process import Node
from test_commands import on

from overlayd.cli.drift import Step, carry_out, plan_streams, plan_subscriptions
from overlayd.cli.exits import CONFIG, FAILED, OK
from overlayd.client import SyncClient, calls, subscription_calls
from overlayd.config import load_settings
from overlayd.model.errors import OverlaydError, OwnedByConfig

WANTED = """
[defaults]
visibility = "public"
[[streams]]
name = "apply.a"
title = "A"
[[streams]]
name = "apply.b"
[[subscriptions]]
name = "apply-pull"
kind = "pull"
streams = ["apply.*"]
[[subscriptions]]
name = "apply-hook"
kind = "webhook"
streams = ["apply.a"]
webhook = { url = "https://example.com/x", ordering = "stream", headers = { "X-Token" = "hidden" } }
"""
DRIFT = 2


class Files:
    """A file and what applying it does."""

    def __init__(self, node: Node, directory: Path) -> None:
        self.node = node
        self.file = directory / "wanted.toml"
        self.file.write_text(WANTED)

    def apply(self, *arguments: str) -> tuple[int, set[tuple[str, str]]]:
        """The exit code, and (verb, name) of each step."""
        done = self.run(*arguments)
        steps = [msgspec.json.decode(line) for line in done.stdout.splitlines()]
        return done.returncode, {(step["verb"], step["name"]) for step in steps}

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """As it is printed."""
        return on(self.node, "apply", str(self.file), "--json", *arguments)

    def write(self, text: str) -> None:
        """What the file says from now on."""
        self.file.write_text(text)


@pytest.fixture
def files(node: Node, tmp_path: Path) -> Files:
    """A file for the node, without what an earlier test left."""
    with SyncClient(f"unix:{node.directory}/overlayd.sock") as client:
        for subscription in client.subscriptions.list():
            client.subscriptions.delete(subscription.name)
        for stream in client.streams(q="apply"):
            client.delete(stream.stream)
    return Files(node, tmp_path)


def test_applying_twice_changes_nothing(files: Files) -> None:
    """The first makes everything, a dry run says so before without doing it; the second finds nothing to do."""
    everything = {("create", name) for name in ("apply.a", "apply.b", "apply-pull", "apply-hook")}
    assert files.apply("--dry-run") == (DRIFT, everything)
    assert files.apply("--dry-run") == (DRIFT, everything), "a dry run changed something"
    assert files.apply() == (OK, everything)
    assert files.apply() == (OK, set())
    assert files.apply("--dry-run", "--prune") == (OK, set())
    with SyncClient(f"unix:{files.node.directory}/overlayd.sock") as client:
        assert (client.stream("apply.a").title, client.stream("apply.b").visibility) == ("A", "public")
        assert client.stream("apply.a").owner == "api"


def test_what_was_changed_by_hand_is_drift(files: Files) -> None:
    """Each member that differs is named, also one that was only taken away; applying puts it right."""
    files.apply()
    with SyncClient(f"unix:{files.node.directory}/overlayd.sock") as client:
        client.define("apply.a", {"title": "by hand", "tags": ["x"]})
        client.subscriptions.patch("apply-hook", {"types": ["t"], "webhook": {"ordering": "none"}})
        done = files.run("--dry-run")
        assert done.returncode == DRIFT
        details = {step["name"]: step["detail"] for step in map(msgspec.json.decode, done.stdout.splitlines())}
        assert details == {"apply.a": "title, tags, visibility", "apply-hook": "types, webhook"}
        assert files.apply() == (OK, {("change", "apply.a"), ("change", "apply-hook")})
        assert files.apply("--dry-run") == (OK, set())
        shown = client.subscriptions.get("apply-hook")
        assert shown.types == []


def test_pruning_never_takes_packets(files: Files) -> None:
    """What the file doesn't name any more stays unless asked; then subscriptions go and streams without packets, and a
    stream that has some is named and kept."""
    files.apply()
    with SyncClient(f"unix:{files.node.directory}/overlayd.sock") as client:
        client.publish("apply.a", 1)
        files.write('[[streams]]\nname = "apply.c"\n')
        assert files.apply() == (OK, {("create", "apply.c")})
        wanted = {("keep", "apply.a"), ("delete", "apply.b"), ("delete", "apply-pull"), ("delete", "apply-hook")}
        code, steps = files.apply("--prune")
        assert (code, {step for step in steps if step[1].startswith("apply")}) == (OK, wanted)
        assert client.stream("apply.a").packets == 1
        with pytest.raises(OverlaydError):
            client.stream("apply.b")
        assert client.subscriptions.list() == []
        assert files.apply("--prune", "--dry-run") == (OK, {("keep", "apply.a")})


def test_what_changes_meanwhile_is_left(files: Files) -> None:
    """Between looking and acting somebody publishes, changes, makes anew: nothing of that is deleted or overwritten."""
    files.apply()
    with SyncClient(f"unix:{files.node.directory}/overlayd.sock") as client:
        files.write('[[streams]]\nname = "apply.a"\ntitle = "mine"\n[[streams]]\nname = "apply.c"\n')
        client.define("apply.d", {})
        wanted = load_settings(files.file, environ={}).settings
        steps = [
            *plan_streams(wanted.streams, client.streams(q="apply"), prune=True),
            *plan_subscriptions(wanted.subscriptions, client.subscriptions.list(), prune=True),
        ]
        client.define("apply.a", {"title": "theirs"})
        client.publish("apply.b", 1)
        client.define("apply.c", {"title": "theirs"})
        client.delete("apply.d")
        client.define("apply.d", {})
        client.subscriptions.delete("apply-pull")
        client.subscriptions.create({"name": "apply-pull", "kind": "pull", "streams": ["apply.*"]})
        told: list[Step] = []
        done = carry_out(steps, client.send, told.append)
        conflicts = {"apply.a", "apply.b", "apply.c", "apply.d", "apply-pull"}
        assert {(step.verb, step.name) for step in done if step.name in conflicts} == {
            ("conflict", name) for name in conflicts
        }
        assert told == done
        assert client.stream("apply.a").title == client.stream("apply.c").title == "theirs"
        assert (client.stream("apply.b").packets, client.stream("apply.d").packets) == (1, 0)
        assert [one.name for one in client.subscriptions.list()] == ["apply-pull"]


def test_conditions_of_changes(files: Files) -> None:
    """A deletion or change that means another definition, or another newest packet, is refused and changes nothing."""
    files.apply()
    with SyncClient(f"unix:{files.node.directory}/overlayd.sock") as client:
        stream = client.send(calls.tagged(calls.stream("apply.a")))
        hook = client.send(calls.tagged(subscription_calls.subscription("apply-hook")))
        client.subscriptions.patch("apply-hook", {"webhook": {"headers": {"X-Token": "another"}}})
        client.publish("apply.a", 1)
        for call, code in (
            (calls.delete("apply.a", if_match='"1-00"'), "definition.conflict"),
            (calls.delete("apply.a", if_match=stream.etag, expected_sequence=0), "sequence.mismatch"),
            (subscription_calls.delete("apply-hook", if_match=hook.etag), "subscription.conflict"),
            (subscription_calls.patch("apply-hook", {"types": ["x"]}, if_match=hook.etag), "subscription.conflict"),
        ):
            with pytest.raises(OverlaydError) as refused:
                client.send(call)
            assert (refused.value.code, refused.value.status) == (code, 409)
        assert client.subscriptions.get("apply-hook").types == []
        hook = client.send(calls.tagged(subscription_calls.subscription("apply-hook")))
        client.send(subscription_calls.delete("apply-hook", if_match=hook.etag))
        assert client.send(calls.delete("apply.a", if_match=stream.etag, expected_sequence=1)).packets_removed == 1


def test_what_the_configuration_declares_is_a_conflict(tmp_path: Path) -> None:
    """One owner for each object: the node's own file beats `apply`, which says so and does the rest."""
    node = Node(tmp_path / "data", config='[[streams]]\nname = "apply.a"\ntitle = "from the file"\n')
    try:
        node.wait_ready()
        files = Files(node, tmp_path)
        code, steps = files.apply()
        assert (code, ("conflict", "apply.a") in steps, ("create", "apply.b") in steps) == (FAILED, True, True)
        files.write('[[streams]]\nname = "apply.a"\ntitle = "from the file"\n')
        assert files.apply("--dry-run") == (OK, set())
        with SyncClient(f"unix:{node.directory}/overlayd.sock") as client, pytest.raises(OwnedByConfig):
            client.define("apply.a", {"title": "no"})
    finally:
        assert node.stop() == 0


def test_a_wrong_file_changes_nothing(files: Files) -> None:
    """It is named with its line, before anything is sent."""
    files.write('[[streams]]\nname = "apply.new"\n[[streams]]\nname = "apply.other"\nnonsense = 1\n')
    done = files.run()
    assert done.returncode == CONFIG
    assert "wanted.toml:5" in done.stderr
    assert httpx.get(f"{files.node.url}/v1/streams/apply.new").status_code == 404

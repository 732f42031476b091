"""The Dockerfile, as far as it can be checked without Docker: its paths, and its last stage, run in a Debian of its own."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pytest
import systemd_machine
from systemd_machine import ROOT

pytestmark = pytest.mark.timeout(600)

_LOOPBACK_UP = (
    "import fcntl, socket, struct;"
    "fcntl.ioctl(socket.socket(), 0x8914, struct.pack('16sh14x', b'lo', 1))"  # SIOCSIFFLAGS, IFF_UP
)
# In namespaces of their own, so that the node's port is free and what is started ends with the script.
_RUN = """
set -e
mount --bind "$ROOT_DIR" "$ROOT_DIR"
mount -t proc proc "$ROOT_DIR/proc"
for name in null urandom; do touch "$ROOT_DIR/dev/$name"; mount --bind "/dev/$name" "$ROOT_DIR/dev/$name"; done
"$PYTHON" -c "$LOOPBACK_UP"
inside="chroot --userspec=$RUN_AS $ROOT_DIR /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin"
eval "exec $inside $STARTED" &
node=$!
for _ in $(seq 300); do
  if eval "$inside $HEALTH" >/dev/null 2>&1; then break; fi
  kill -0 $node; sleep 0.2
done
eval "$inside $HEALTH"
eval "$inside $SMOKE"
kill -TERM $node
wait $node
"""


class Instruction(NamedTuple):
    """One of a stage: its word, and the rest of its line."""

    word: str
    rest: str


def stages() -> list[list[Instruction]]:
    """The Dockerfile's stages."""
    text = "\n".join(line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#"))
    found: list[list[Instruction]] = []
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip():
            word, rest = line.split(None, 1)
            if word == "FROM":
                found.append([])
            found[-1].append(Instruction(word, rest.strip()))
    return found


def one(stage: list[Instruction], word: str) -> str:
    """What the only instruction of a kind says."""
    (rest,) = [rest for found, rest in stage if found == word]
    return rest


def copied(stage: list[Instruction]) -> tuple[str, PurePosixPath]:
    """What the last stage takes from the build, as a path of the checkout, and where it goes."""
    option, source, target = one(stage, "COPY").split()
    assert option == "--from=build"
    return str(PurePosixPath(source).relative_to(one(stages()[0], "WORKDIR"))), PurePosixPath(target)


def test_what_is_copied_is_what_is_built() -> None:
    """The build gets the whole checkout but for what it makes itself; the image gets the tree that the build leaves."""
    build, image = stages()
    assert one(build, "FROM").endswith(" AS build")
    assert one(build, "COPY") == ". ."
    ignored = (ROOT / ".dockerignore").read_text().split()
    needed = ("Makefile", "packaging", "overlayd", "requirements", "pyproject.toml", "README.md", ".git")
    assert not set(needed) & set(ignored)
    source, target = copied(image)
    script, spec = (ROOT / "packaging/build").read_text(), (ROOT / "packaging/overlayd.spec").read_text()
    assert "work=build/package\n" in script
    assert 'name="tree"' in spec
    assert source == "build/package/tree"
    links = [rest.split() for word, rest in image if word == "RUN" and rest.startswith("ln ")]
    assert [(target.parent.parent / "bin" / link[2]).as_posix() for link in links] == [
        "/usr/bin/../lib/overlayd/overlayd"
    ]


def test_the_image_runs_as_nobody_in_particular() -> None:
    """Not as root, with one volume, which belongs to the user, and a check of its health."""
    image = stages()[-1]
    user, volume = one(image, "USER"), one(image, "VOLUME")
    (made,) = [rest for word, rest in image if word == "RUN" and "useradd" in rest]
    assert f"--uid 7878 {user}" in made
    assert f"-o {user} -g {user} -m 0750 {volume}" in made
    started = json.loads(one(image, "ENTRYPOINT")) + json.loads(one(image, "CMD"))
    assert started[started.index("--data") + 1] == volume
    assert volume in one(image, "HEALTHCHECK")


def test_the_last_stage_makes_a_node(binary: Path) -> None:
    """Its commands, run one after the other in a bare Debian 12: the user, the node, its health, a packet through it, its end."""
    if lacking := systemd_machine.why_not() or systemd_machine.make_base():
        pytest.skip(lacking)
    image = stages()[-1]
    place = Path(tempfile.mkdtemp(prefix="overlayd-image-"))
    try:
        subprocess.run(["tar", "--extract", "--file", systemd_machine.BASE, "--directory", place], check=True)
        for word, rest in image:
            if word == "RUN":
                subprocess.run(["chroot", place, "/bin/sh", "-c", rest], check=True, stdin=subprocess.DEVNULL)
            elif word == "COPY":
                source, target = copied(image)
                shutil.copytree(ROOT / source, place / target.relative_to("/"), symlinks=True)
        started = json.loads(one(image, "ENTRYPOINT")) + json.loads(one(image, "CMD"))
        health = json.loads(one(image, "HEALTHCHECK").split(" CMD ")[1])
        smoke = ["overlayd", "smoke", "--data", one(image, "VOLUME")]
        done = subprocess.run(
            ["unshare", "--mount", "--pid", "--fork", "--net", "--kill-child", "bash", "-c", _RUN],
            env={**os.environ, "ROOT_DIR": str(place), "PYTHON": sys.executable, "LOOPBACK_UP": _LOOPBACK_UP,
                 "RUN_AS": one(image, "USER"), "STARTED": shlex.join(started), "HEALTH": shlex.join(health),
                 "SMOKE": shlex.join(smoke)},
            capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        volume = place / one(image, "VOLUME").lstrip("/")
        assert (volume / "log.sqlite3").stat().st_uid == 7878
    finally:
        shutil.rmtree(place, ignore_errors=True)

"""The peers, with the settings that make them as durable as they can be, and those they come with where that differs."""

import os
from pathlib import Path

from benchmarks.servers import Server, find_program, free_port, start, version_of

APT = "apt-get install -y --no-install-recommends "
NCHAN_MODULE = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")


def start_nats(directory: Path, *, is_synced: bool) -> Server:
    """JetStream, on file. Raises Missing."""
    program = find_program("nats-server", "make bench installs it into .venv (requirements/bench.lock)")
    directory.mkdir(parents=True)
    port = free_port()
    sync = "sync_interval: always, " if is_synced else ""
    config = directory / "nats.conf"
    config.write_text(
        f'listen: "127.0.0.1:{port}"\n'
        f'jetstream {{ store_dir: "{directory}/store", {sync}max_mem: 256MB, max_file: 16GB }}\n'
    )
    process = start([program, "-c", str(config)], directory, port)
    name = "NATS JetStream, sync always" if is_synced else "NATS JetStream, default"
    said = "sync_interval: always" if is_synced else "not durable: synced every 2 minutes (the default)"
    return Server(name, version_of([program, "-v"]), said, is_synced, port, directory, process)


def start_redis(directory: Path) -> Server:
    """Streams, with the append-only file synced before each answer. Raises Missing."""
    program = find_program("redis-server", APT + "redis-server")
    find_program("redis-benchmark", APT + "redis-tools")
    directory.mkdir(parents=True)
    port = free_port()
    options = ["--dir", str(directory), "--appendonly", "yes", "--appendfsync", "always", "--save", ""]
    # Rewriting its file is a process beside it, which would work on in the turns of others.
    options += ["--auto-aof-rewrite-percentage", "0"]
    command = [program, "--bind", "127.0.0.1", "--port", str(port), *options]
    process = start(command, directory, port)
    return Server("Redis, appendfsync always", version_of([program, "-v"]), "appendfsync always", True, port,
                  directory, process)  # fmt: skip


def start_mosquitto(directory: Path) -> Server:
    """QoS 1, saving after every change: the most it offers. Raises Missing."""
    program = find_program("mosquitto", APT + "mosquitto")
    directory.mkdir(parents=True)
    port = free_port()
    config = directory / "mosquitto.conf"
    config.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence true\npersistence_location {directory}/\n"
        "autosave_on_changes true\nautosave_interval 1\nmax_queued_messages 0\nmax_inflight_messages 0\nuser root\n"
    )
    process = start([program, "-c", str(config)], directory, port)
    return Server("Mosquitto, QoS 1, autosave", version_of([program, "-h"]),
                  "not durable: PUBACK doesn't wait for the disk, even with autosave after every change", False, port,
                  directory, process)  # fmt: skip


def start_nchan(directory: Path) -> Server:
    """nginx with the push module, one worker. Raises Missing."""
    line = APT + "nginx libnginx-mod-nchan"
    program = find_program("nginx", line)
    if not NCHAN_MODULE.exists():
        find_program("nginx-with-nchan", line)
    directory.mkdir(parents=True)
    port = free_port()
    temporary = "".join(
        f" {kind}_temp_path {directory}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root; " if os.geteuid() == 0 else ""  # else the worker couldn't enter the directory
    config = directory / "nginx.conf"
    config.write_text(
        f"load_module {NCHAN_MODULE};\n{user}worker_processes 1; daemon off;\n"
        f"pid {directory}/pid; error_log {directory}/errors;\nevents {{ worker_connections 30000; }}\n"
        f"http {{ access_log off;{temporary} nchan_shared_memory_size 512M;\n"
        f" server {{ listen 127.0.0.1:{port} backlog=4096; keepalive_requests 1000000000;\n"
        "  location ~ /pub/([a-z0-9-]+)$ { nchan_publisher; nchan_channel_id $1;"
        " nchan_message_buffer_length 1000; nchan_message_timeout 1h; }\n"
        "  location ~ /sub/([a-z0-9-]+)$ { nchan_subscriber; nchan_channel_id $1;"
        " nchan_subscriber_first_message newest; }\n } }\n"
    )
    process = start([program, "-c", str(config), "-e", str(directory / "errors")], directory, port)
    version = version_of(["dpkg-query", "-W", "libnginx-mod-nchan"])
    return Server("nchan, in memory", version, "not durable: messages lie in shared memory only", False, port, directory,
                  process)  # fmt: skip

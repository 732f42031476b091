"""The process as metrics."""

from prometheus_client import generate_latest

from overlayd import __version__
from overlayd.model.metrics import Metrics
from overlayd.model.process_metrics import register_process_metrics


def test_the_process_is_measured() -> None:
    """CPU, resident memory and open descriptors come from /proc, the build from what is installed."""
    metrics = Metrics()
    register_process_metrics(metrics)
    lines = generate_latest(metrics.registry).decode().splitlines()
    values = {line.split(" ")[0].split("{")[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line[0] != "#"}
    assert values["process_cpu_seconds_total"] > 0
    assert values["process_resident_memory_bytes"] > 1 << 20
    assert 0 < values["process_open_fds"] <= values["process_max_fds"]
    (build,) = [line for line in lines if line.startswith("overlayd_build_info")]
    assert f'version="{__version__}"' in build
    assert build.endswith(" 1.0")

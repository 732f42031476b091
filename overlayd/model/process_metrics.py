"""The process itself as metrics: processor time, memory, descriptors, and what it is built of."""

import platform
import sqlite3
from importlib import metadata

from prometheus_client import ProcessCollector

from overlayd import __version__
from overlayd.model.metrics import Metrics


def register_process_metrics(metrics: Metrics) -> None:
    """Adds `process_*` (read from /proc at each scrape) and `overlayd_build_info`."""
    ProcessCollector(registry=metrics.registry)
    labels = {
        "version": __version__,
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "trio": metadata.version("trio"),
        "hypercorn": metadata.version("hypercorn"),
    }
    info = metrics.gauge("overlayd_build_info", "Always 1; the labels say what the node is built of", *labels)
    info.labels(**labels).set(1)

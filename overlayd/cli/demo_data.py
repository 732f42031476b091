"""The demo's real data: a public weather record that a package ships, and what this machine measures of itself."""

import csv
import importlib.util
import sys
from pathlib import Path
from typing import Any

import click
import msgspec

WEATHER_STREAM = "weather.seattle"
HOST_STREAM = "host.metrics"

WEATHER_DEFINITION: dict[str, Any] = {
    "title": "Seattle weather, 2012 to 2015",
    "description": "Daily record drawn from NOAA data by the vega-datasets package, replayed",
    "tags": ["demo"],
    "key": "data.weather",
    "schema": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "required": ["date", "precipitation", "temp_max", "temp_min", "wind", "weather"],
        "additionalProperties": False,
        "properties": {
            "date": {"type": "string", "format": "date"},
            "precipitation": {"type": "number", "minimum": 0},
            "temp_max": {"type": "number"},
            "temp_min": {"type": "number"},
            "wind": {"type": "number", "minimum": 0},
            "weather": {"enum": ["drizzle", "fog", "rain", "snow", "sun"]},
        },
    },
}
HOST_DEFINITION: dict[str, Any] = {
    "title": "Load and memory of this machine",
    "tags": ["demo"],
    "schema": {
        "type": "object",
        "required": ["load_1m", "load_5m", "load_15m", "memory_total_kib", "memory_available_kib"],
        "additionalProperties": False,
        "properties": {
            "load_1m": {"type": "number", "minimum": 0},
            "load_5m": {"type": "number", "minimum": 0},
            "load_15m": {"type": "number", "minimum": 0},
            "memory_total_kib": {"type": "integer", "minimum": 1},
            "memory_available_kib": {"type": "integer", "minimum": 0},
        },
    },
}
_NUMBERS = ("precipitation", "temp_max", "temp_min", "wind")


def find_weather_file() -> Path:
    """The record's CSV, without importing the package (which would want pandas). Raises click.ClickException."""
    spec = importlib.util.find_spec("vega_datasets")
    for place in (spec.submodule_search_locations if spec is not None else None) or ():
        file = Path(place) / "_data" / "seattle-weather.csv"
        if file.exists():
            return file
    raise click.ClickException(
        "the demo replays the weather record of the package vega-datasets, which isn't installed. Install it with\n"
        f"  {sys.executable} -m pip install --no-deps vega-datasets"
    )


def load_weather() -> list[dict[str, Any]]:
    """One row a day. Raises click.ClickException when the package is missing."""
    with find_weather_file().open(newline="", encoding="utf-8") as file:
        return [weather_of(row) for row in csv.DictReader(file)]


def weather_of(row: dict[str, str]) -> dict[str, Any]:
    """A CSV row as packet data: an ISO date, numbers verbatim as the file has them."""
    data: dict[str, Any] = {"date": row["date"].replace("/", "-")}
    data |= {name: msgspec.Raw(row[name].encode()) for name in _NUMBERS}
    return data | {"weather": row["weather"]}


def read_host() -> dict[str, Any]:
    """Load averages and memory, as the kernel tells them now."""
    loads = Path("/proc/loadavg").read_text(encoding="ascii").split()[:3]
    memory = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
    return {
        "load_1m": float(loads[0]),
        "load_5m": float(loads[1]),
        "load_15m": float(loads[2]),
        "memory_total_kib": int(memory["MemTotal"].split()[0]),
        "memory_available_kib": int(memory["MemAvailable"].split()[0]),
    }

"""The demo's data are real, and their absence is told."""

import importlib.util
import sys

import msgspec
import pytest
from click.testing import CliRunner

from overlayd.cli import cli
from overlayd.cli.demo_data import HOST_DEFINITION, WEATHER_DEFINITION, load_weather, read_host


def test_the_weather_record_is_the_packages_own() -> None:
    """Every day of four years, numbers with the digits of the file."""
    rows = load_weather()
    assert len(rows) == 1461
    assert msgspec.json.encode(rows[0]) == (
        b'{"date":"2012-01-01","precipitation":0.0,"temp_max":12.8,"temp_min":5.0,"wind":4.7,"weather":"drizzle"}'
    )
    assert [row["date"] for row in rows] == sorted({row["date"] for row in rows})


def test_pandas_is_not_needed() -> None:
    """The package is found without being imported."""
    load_weather()
    assert "vega_datasets" not in sys.modules


def test_every_row_and_the_hosts_metrics_fit_their_schemas() -> None:
    """What the demo publishes is what its streams ask for."""
    import jsonschema_rs

    weather = jsonschema_rs.validator_for(WEATHER_DEFINITION["schema"], validate_formats=True)
    for row in load_weather():
        weather.validate(msgspec.json.decode(msgspec.json.encode(row)))
    host = read_host()
    jsonschema_rs.validator_for(HOST_DEFINITION["schema"]).validate(host)
    assert 0 < host["memory_available_kib"] <= host["memory_total_kib"]


def test_a_missing_package_is_told_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is started, nothing is made up."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = CliRunner().invoke(cli, ["run", "--demo"])
    assert result.exit_code == 1
    assert f"{sys.executable} -m pip install --no-deps vega-datasets" in result.stderr

"""Loading: which source wins, what each mistake is answered with."""

from pathlib import Path

import pytest

from overlayd.config import Flag, Loaded, load_settings
from overlayd.model.errors import ConfigInvalid
from overlayd.model.units import Duration, Size


def load(directory: Path, text: str, environ: dict[str, str] | None = None, **flags: Flag) -> Loaded:
    """Loads one file with the given text."""
    file = directory / "overlayd.toml"
    file.write_text(text)
    by_key = {name.replace("__", "."): flag for name, flag in flags.items()}
    return load_settings(file, environ=environ or {}, flags=by_key)


def refuse(directory: Path, text: str, environ: dict[str, str] | None = None) -> list[str]:
    """The lines that a wrong configuration is answered with, without the directory."""
    with pytest.raises(ConfigInvalid) as caught:
        load(directory, text, environ)
    return [line.replace(f"{directory}/", "") for line in caught.value.detail.splitlines()]


def test_nothing_given_is_enough() -> None:
    """Without any file every setting has its default, data goes to ./overlayd-data."""
    loaded = load_settings(environ={})
    assert loaded.settings.storage.dir == "overlayd-data"
    assert loaded.settings.listen.tcp == ("127.0.0.1:7878",)
    assert loaded.settings.node.name
    assert loaded.origins == {}
    assert loaded.files == ()


def test_a_file_beats_defaults(tmp_path: Path) -> None:
    """Values are converted to their types; what isn't mentioned keeps its default."""
    text = '[limits]\nwait_max = "20s"\npacket_bytes = "2MiB"\n[defaults.retention]\nmax_age = "1h"\n'
    settings = load(tmp_path, text).settings
    assert settings.limits.wait_max == Duration(20)
    assert settings.limits.packet_bytes == Size(2 << 20)
    assert settings.defaults.definition.retention.max_age == Duration(3600)
    assert settings.limits.scan_max == 100_000


def test_environment_beats_file_and_flags_beat_environment(tmp_path: Path) -> None:
    """Each source is stronger than the one before, and every value knows where it came from."""
    text = '[node]\nname = "file"\n[log]\nlevel = "error"\n[storage]\ndir = "a"\n'
    environ = {"OVERLAYD_LOG__LEVEL": "debug", "OVERLAYD_STORAGE__DIR": "b"}
    loaded = load(tmp_path, text, environ, storage__dir=Flag("--data", "c"))
    assert loaded.settings.node.name == "file"
    assert loaded.settings.log.level == "debug"
    assert loaded.settings.storage.dir == "c"
    origins = {name: str(origin) for name, origin in loaded.origins.items()}
    assert origins == {
        "node.name": f"{tmp_path}/overlayd.toml:2",
        "log.level": "OVERLAYD_LOG__LEVEL",
        "storage.dir": "--data",
    }


@pytest.mark.parametrize(
    ("variable", "text", "expected"),
    [
        ("OVERLAYD_LISTEN__TCP", "127.0.0.1:1,[::1]:2", ("127.0.0.1:1", "[::1]:2")),
        ("OVERLAYD_LISTEN__TCP", '["127.0.0.1:1"]', ("127.0.0.1:1",)),
        ("OVERLAYD_LISTEN__TCP", "", ()),
        ("OVERLAYD_LISTEN__INSECURE", "true", True),
        ("OVERLAYD_LISTEN__INSECURE", "0", False),
        ("OVERLAYD_LISTEN__BACKLOG", "64", 64),
    ],
)
def test_variables_are_read_as_their_settings_type(variable: str, text: str, expected: object) -> None:
    """Lists are split at commas or read as TOML, booleans and numbers as such."""
    settings = load_settings(environ={variable: text}).settings
    assert getattr(settings.listen, variable.split("__")[1].lower()) == expected


def test_deeper_variables_and_tables() -> None:
    """A definition's parts and a whole schema can be given as variables."""
    environ = {
        "OVERLAYD_DEFAULTS__RETENTION__MAX_AGE": "2d",
        "OVERLAYD_DEFAULTS__SCHEMA": '{"type": "object"}',
        "OVERLAYD_DEFAULTS__CONFIRM__DEPTHS": "[1, 6]",
        "OVERLAYD_DEFAULTS__AUTO_CREATE": "false",
    }
    defaults = load_settings(environ=environ).settings.defaults
    assert defaults.definition.retention.max_age == Duration(2 * 86_400)
    assert defaults.definition.schema == {"type": "object"}
    assert defaults.definition.confirm.depths == (1, 6)
    assert defaults.auto_create is False


def test_variables_without_a_table_are_not_settings() -> None:
    """OVERLAYD_URL and the like belong to the client."""
    assert load_settings(environ={"OVERLAYD_URL": "http://x", "OTHER__THING": "1"}).origins == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[storage]\nsinc = "full"', "overlayd.toml:2: storage.sinc: no such key; did you mean storage.sync?"),
        ("[storge]\n", "overlayd.toml:1: storge: no such table; did you mean storage?"),
        ("[node]\npacket_bytes = 1", "overlayd.toml:2: node.packet_bytes: no such key; did you mean limits.packet_bytes?"),
        ("\n[metrics]\nzzz = 1", "overlayd.toml:3: metrics.zzz: no such key; expected one of enabled"),
        ('[storage]\nsync = "ful"', 'overlayd.toml:2: storage.sync: expected one of "full", "extra"; got "ful"; did you mean "full"?'),
        ('[limits]\nscan_max = "many"', 'overlayd.toml:2: limits.scan_max: expected a whole number, at least 1; got "many"'),
        ("[limits]\nscan_max = 0", "overlayd.toml:2: limits.scan_max: expected a whole number, at least 1; got 0"),
        ("[limits]\nwait_max = 30", 'overlayd.toml:2: limits.wait_max: expected a duration such as "30s", "250ms" or "1h30m", above 0; got 30'),
        ('[limits]\nwait_max = "0s"', 'overlayd.toml:2: limits.wait_max: expected a duration such as "30s", "250ms" or "1h30m", above 0; got "0s"'),
        ('[limits]\nbody_bytes = "1 MB!"', 'overlayd.toml:2: limits.body_bytes: expected a size such as "64KiB" or "1GiB", above 0; got "1 MB!"'),
        ('[listen]\ntcp = "x"', 'overlayd.toml:2: listen.tcp: expected a list of texts; got "x"'),
        ("limits = 3", "overlayd.toml:1: limits: expected a table, got 3"),
        ('[cluster]\nname = "east"', "overlayd.toml:1: cluster: not supported by this version of overlayd"),
        ("[[sources]]\nx = 1", "overlayd.toml:1: sources: not supported by this version of overlayd"),
        ("[node]\nidentity = 1", "overlayd.toml:2: node.identity: not supported by this version of overlayd"),
        ("[defaults.confirm]\ndepths = [0]", "overlayd.toml:2: defaults.confirm.depths: expected a list of whole numbers, at least 1, at most 1000; got [0]"),
        ("[defaults]\nschema = 3", "overlayd.toml:2: defaults.schema: expected a table; got 3"),
        ("[node]\nname = [", "overlayd.toml:2: not TOML: Invalid value (at end of document)"),
        ("[streams]\nname = 1", "overlayd.toml:1: streams: expected an array of tables, each under its own [[streams]] header"),
        ("[[streams]]\ntitle = 'x'", "overlayd.toml:1: streams[0].name: expected a stream's name"),
        ("[[streams]]\nname = 'overlayd.x'", 'overlayd.toml:1: streams.name: "overlayd.x" belongs to the node itself'),
        ("[[streams]]\nname = 'a'\n[[streams]]\nname = 'b'\n[streams.retention]\nmax_ag = '1d'", "overlayd.toml:6: streams.b.retention.max_ag: no such key; did you mean streams.b.retention.max_age?"),
        ("[[streams]]\nname = 'a'\nvisibility = 'publik'", 'overlayd.toml:3: streams.a.visibility: expected one of "private", "public"; got "publik"; did you mean "public"?'),
    ],
)  # fmt: skip
def test_a_mistake_is_named(tmp_path: Path, text: str, expected: str) -> None:
    """File, line, key, what was expected, and the nearest valid name."""
    assert refuse(tmp_path, text) == [expected]


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    """Two wrong keys in a file and one in the environment make three lines."""
    lines = refuse(tmp_path, "[log]\nlevle = 1\nformat = 2", {"OVERLAYD_LOG__LEVELL": "info"})
    assert [line.split(": ")[1] for line in lines] == ["log.levle", "log.levell", "log.format"]


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        ("OVERLAYD_STORAGE__SINC", "no such setting; did you mean OVERLAYD_STORAGE__SYNC?"),
        ("OVERLAYD_CLUSTER__NAME", "not supported by this version of overlayd"),
        ("OVERLAYD_STREAMS__X", "streams are declared in files"),
        ("OVERLAYD_QQQQQQQ__X", "no such"),
    ],
)
def test_a_wrong_variable_is_named(variable: str, expected: str) -> None:
    """An environment variable that looks like a setting but isn't one is an error, too."""
    with pytest.raises(ConfigInvalid, match=variable) as caught:
        load_settings(environ={variable: "1"})
    assert expected in caught.value.detail


def test_files_of_conf_d_are_read_in_order(tmp_path: Path) -> None:
    """Tables merge, later files win, arrays of tables add up; hidden and other files are left alone."""
    parts = tmp_path / "conf.d"
    parts.mkdir()
    (parts / "20.toml").write_text('[log]\nlevel = "debug"\n[[streams]]\nname = "b"\n')
    (parts / "10.toml").write_text('[log]\nlevel = "warning"\nformat = "json"\n[[streams]]\nname = "a"\n')
    (parts / ".30.toml").write_text("nonsense")
    (parts / "40.txt").write_text("nonsense")
    loaded = load(tmp_path, '[node]\nname = "n"\n[[streams]]\nname = "c"\n')
    assert (loaded.settings.log.level, loaded.settings.log.format) == ("debug", "json")
    assert [stream.name for stream in loaded.settings.streams] == ["c", "a", "b"]
    assert [file.name for file in loaded.files] == ["overlayd.toml", "10.toml", "20.toml"]


def test_a_stream_declared_twice_names_both_places(tmp_path: Path) -> None:
    """The same name in two files is an error that points at each."""
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d/a.toml").write_text('\n[[streams]]\nname = "s"\n')
    lines = refuse(tmp_path, '[[streams]]\nname = "s"\n')
    assert lines == ['conf.d/a.toml:2: streams.s: the stream "s" is declared at overlayd.toml:1 too']


def test_a_stream_takes_the_rest_from_the_defaults(tmp_path: Path) -> None:
    """What a [[streams]] doesn't say comes from [defaults], part by part."""
    text = (
        '[defaults]\nvisibility = "public"\n[defaults.retention]\nmax_age = "1d"\nmax_packets = 5\n'
        '[[streams]]\nname = "s"\ntitle = "T"\n[streams.retention]\nmax_age = "2d"\n'
    )
    (stream,) = load(tmp_path, text).settings.streams
    assert (stream.name, stream.definition.title, stream.definition.visibility) == ("s", "T", "public")
    assert stream.definition.retention.max_age == Duration(2 * 86_400)
    assert stream.definition.retention.max_packets == 5
    assert stream.declared_in == f"{tmp_path}/overlayd.toml:6"


def test_a_wrong_default_is_told_once(tmp_path: Path) -> None:
    """A mistake in [defaults] isn't repeated for every stream."""
    lines = refuse(tmp_path, '[defaults]\ntitle = 1\n[[streams]]\nname = "a"\n[[streams]]\nname = "b"\n')
    assert lines == ["overlayd.toml:2: defaults.title: expected a text, at most 200 characters; got 1"]


def test_systemd_directories_are_honored(tmp_path: Path) -> None:
    """$CONFIGURATION_DIRECTORY is searched, $STATE_DIRECTORY holds the data."""
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "config.toml").write_text('[node]\nname = "a"\n')
    (tmp_path / "conf.d/x.toml").write_text('[log]\nlevel = "debug"\n')
    environ = {"CONFIGURATION_DIRECTORY": str(tmp_path), "STATE_DIRECTORY": "/var/lib/overlayd:/other"}
    loaded = load_settings(environ=environ)
    assert (loaded.settings.node.name, loaded.settings.log.level) == ("a", "debug")
    assert loaded.settings.storage.dir == "/var/lib/overlayd"
    assert str(loaded.origins["storage.dir"]) == "STATE_DIRECTORY"


def test_a_configuration_directory_may_be_empty(tmp_path: Path) -> None:
    """No file in $CONFIGURATION_DIRECTORY means defaults; a file that was named must be there."""
    assert load_settings(environ={"CONFIGURATION_DIRECTORY": str(tmp_path)}).files == ()
    with pytest.raises(ConfigInvalid, match="can't be read: No such file"):
        load_settings(tmp_path / "absent.toml", environ={})


def test_unreadable_text_is_refused(tmp_path: Path) -> None:
    """Bytes that aren't UTF-8 name their line; a file over the bound isn't parsed."""
    file = tmp_path / "overlayd.toml"
    file.write_bytes(b'[node]\nname = "\xff"\n')
    with pytest.raises(ConfigInvalid, match=r"overlayd\.toml:2: not UTF-8"):
        load_settings(file, environ={})
    file.write_bytes(b"#" * (5 << 20))
    with pytest.raises(ConfigInvalid, match="over 4 MiB"):
        load_settings(file, environ={})


def test_rows_show_every_key_with_its_origin(tmp_path: Path) -> None:
    """`check-config` can list each key, its value and where it was set."""
    rows = {name: (value, origin) for name, value, origin in load(tmp_path, '[limits]\nwait_max = "9s"\n').rows()}
    assert rows["limits.wait_max"] == ('"9s"', f"{tmp_path}/overlayd.toml:2")
    assert rows["limits.body_bytes"] == ('"64MiB"', "default")
    assert rows["defaults.retention.max_age"] == ('"30d"', "default")
    assert rows["defaults.auto_create"] == ("true", "default")

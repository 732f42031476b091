"""`[[subscriptions]]` in files: in the words of the API, wrong in words with file and line."""

from pathlib import Path

import pytest

from overlayd.config.load import load_settings
from overlayd.model.errors import ConfigInvalid


def write(directory: Path, text: str) -> Path:
    """A configuration file."""
    file = directory / "overlayd.toml"
    file.write_text(text)
    return file


def test_subscriptions_are_read_with_their_places(tmp_path: Path) -> None:
    """Name, body and file with line; those of conf.d add to the list."""
    file = write(
        tmp_path,
        '[[subscriptions]]\nname = "one"\nkind = "pull"\nstreams = ["a"]\n\n[[subscriptions]]\nname = "two"\n'
        'kind = "webhook"\nwebhook = { url = "https://x/", secret = "whsec_secret" }\n',
    )
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "more.toml").write_text('[[subscriptions]]\nname = "three"\nkind = "live"\n')
    found = load_settings(file, environ={}).settings.subscriptions
    assert [one.name for one in found] == ["one", "two", "three"]
    assert [one.declared_in.rpartition("/")[2] for one in found] == [
        "overlayd.toml:1",
        "overlayd.toml:6",
        "more.toml:1",
    ]
    assert "whsec_secret" not in repr(found)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("subscriptions = 1\n", "expected an array of tables"),
        ('[[subscriptions]]\nkind = "pull"\n', "missing required field `name`"),
        ('[[subscriptions]]\nname = "x"\nkind = "agent"\n', "subscriptions.x.agent"),
        ('[[subscriptions]]\nname = "x"\nkind = "pull"\nfrom = "last"\n', "subscriptions.x.from"),
        ('[[subscriptions]]\nname = "x"\nkind = "pull"\nnonsense = 1\n', "nonsense"),
        ('[[subscriptions]]\nname = "x"\nkind = "pull"\npull = { lease = "0s" }\n', "subscriptions.x.pull.lease"),
        ('[[subscriptions]]\nname = "x"\nkind = "pull"\n[[subscriptions]]\nname = "x"\nkind = "pull"\n', "declared at"),
    ],
)
def test_mistakes_name_file_and_line(tmp_path: Path, text: str, words: str) -> None:
    """The file, the line of the table, the key, and what was expected."""
    with pytest.raises(ConfigInvalid) as caught:
        load_settings(write(tmp_path, text), environ={})
    assert words.lower() in str(caught.value).lower()
    assert "overlayd.toml:" in str(caught.value)


def test_variables_declare_none() -> None:
    """A variable that tries is told where subscriptions are declared."""
    with pytest.raises(ConfigInvalid, match="declared in files"):
        load_settings(None, environ={"OVERLAYD_SUBSCRIPTIONS__QQQQQQQQ": "1"})

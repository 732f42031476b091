"""What the settings of sources may say, read from a file as the node reads it."""

from pathlib import Path

import pytest

from overlayd.chain.settings import ChainSettings
from overlayd.chain.sources.settings import RATES, ChainSourceSettings
from overlayd.config.load import load_settings
from overlayd.model.errors import ConfigInvalid

GOOD = """
[chain]
network = "testnet"
callback_url = "https://node.example"

[[chain.sources]]
kind = "arc"
url = "https://arc.example/base"
file = "/run/arc.token"
rate = 2.5
timeout = "3s"

[[chain.sources]]
kind = "whatsonchain"

[[chain.sources]]
kind = "node"
name = "beside-us"
url = "http://10.0.0.7:8332"
allow_private = ["10.0.0.7/32"]
"""


def test_sources_are_read_in_their_order(tmp_path: Path) -> None:
    """With the rate of their kind where none is given."""
    file = tmp_path / "a.toml"
    file.write_text(GOOD)
    chain = load_settings(file, environ={}).settings.chain
    assert [source.name or source.kind for source in chain.sources] == ["arc", "whatsonchain", "beside-us"]
    assert [source.requests_per_s for source in chain.sources] == [2.5, 3.0, 100.0]
    assert (float(chain.sources[0].timeout), chain.sources[2].allow_private) == (3.0, ("10.0.0.7/32",))
    assert min(RATES.values()) == RATES["whatsonchain"] == 3.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[[chain.sources]]\nurl = "https://a.example"', "kind"),
        ('[[chain.sources]]\nkind = "bitcoind"', 'one of "arc"'),
        ('[[chain.sources]]\nkind = "arc"', "needs a url"),
        ('[[chain.sources]]\nkind = "arc"\nurl = "ftp://a.example"', "https://"),
        ('[[chain.sources]]\nkind = "arc"\nurl = "https://user:secret@a.example"', "user name or password"),
        ('[[chain.sources]]\nkind = "arc"\nurl = "https://a.example/?key=1"', "no query"),
        ('[[chain.sources]]\nkind = "arc"\nurl = "https://a.example"\nname = "My ARC"', "a-z"),
        ('[[chain.sources]]\nkind = "arc"\nurl = "https://a.example"\nevents_url = "https://b.example"', "Arcade's"),
        ('[[chain.sources]]\nkind = "arc"\nurl = "https://a.example"\nfile = "a"\ncredential = "b"', "not in both"),
        ('[[chain.sources]]\nkind = "arc"\nurl = "https://a.example"\nallow_private = ["ten"]', "networks"),
        ('[[chain.sources]]\nkind = "arc"\nurl = "https://a.example"\nrate = -1', "at least 0"),
        ('[[chain.sources]]\nkind = "arc"\nurl = "https://a.example"\ntoken = "s3cret"', "no such key"),
        ('[chain]\nnetwork = "mainnet"', "needs somebody who is asked"),
        ('[chain]\ncallback_url = "node.example"', "begins with https://"),
        ("[chain.asking]\nsource_requests = 0", "at least 1"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_in_words(tmp_path: Path, text: str, words: str) -> None:
    """With what was expected; what may be a secret isn't repeated."""
    file = tmp_path / "a.toml"
    file.write_text(text)
    with pytest.raises(ConfigInvalid) as caught:
        load_settings(file, environ={})
    assert words in caught.value.detail
    assert "s3cret" not in caught.value.detail


def test_two_sources_of_a_kind_need_names() -> None:
    """Metrics and callbacks go by them."""
    one = ChainSourceSettings(kind="arc", url="https://a.example")
    with pytest.raises(ValueError, match="two sources are called 'arc'"):
        ChainSettings(network="mainnet", sources=(one, one))
    other = ChainSourceSettings(kind="arc", name="second", url="https://a.example")
    assert len(ChainSettings(network="mainnet", sources=(one, other)).sources) == 2

"""Files for https: own authorities, client certificates, and what is wrong with them."""

import ast
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import ec
from tls_authority import Authority, key_pem_of

from overlayd.cli import cli
from overlayd.client import TlsFiles
from overlayd.model.errors import BadParameter

CLI = Path(__file__).parents[2] / "overlayd" / "cli"


def test_nothing_given_is_the_systems_trust() -> None:
    """Then the client makes its own context, and none for clear text."""
    assert TlsFiles().context() is None


def test_an_authority_replaces_the_systems(tmp_path: Path) -> None:
    """Exactly the named ones are believed."""
    context = TlsFiles(str(Authority(tmp_path).file)).context()
    assert context is not None
    assert [dict(pair for part in one["subject"] for pair in part) for one in context.get_ca_certs()] == [
        {"commonName": "test authority"}
    ]


@pytest.mark.parametrize("case", ["no-ca", "bad-ca", "no-cert", "bad-cert", "key-alone", "other-key", "sealed"])
def test_wrong_files(tmp_path: Path, case: str) -> None:
    """Each is named with what is wrong."""
    authority = Authority(tmp_path)
    a, b = str(authority.issue("a")), str(authority.issue("b"))
    junk, sealed = tmp_path / "junk", tmp_path / "sealed"
    junk.write_text("junk")
    sealed.write_bytes(key_pem_of(ec.generate_private_key(ec.SECP256R1()), b"secret"))
    files, words = {
        "no-ca": (TlsFiles("none.pem"), "none.pem can't be used: No such file"),
        "bad-ca": (TlsFiles(str(junk)), "junk can't be used: no certificate or crl found"),
        "no-cert": (TlsFiles(certfile="none.pem"), "none.pem can't be used: No such file"),
        "bad-cert": (TlsFiles(certfile=str(junk)), "junk can't be used"),
        "key-alone": (TlsFiles(keyfile=a), "a key without its certificate"),
        "other-key": (TlsFiles(certfile=a, keyfile=b), "key values mismatch"),
        "sealed": (TlsFiles(certfile=a, keyfile=str(sealed)), "passphrase"),
    }[case]
    with pytest.raises(BadParameter, match=words):
        files.context()


def test_the_command_line_takes_them(tmp_path: Path) -> None:
    """A file that can't be used is wrong usage, said before anything is sent."""
    done = CliRunner().invoke(cli, ["streams", "list", "--url", "https://127.0.0.1:1", "--cacert", "none.pem"])
    assert done.exit_code != 0
    assert "none.pem can't be used" in done.output + str(done.exception)


def test_every_command_passes_them_on() -> None:
    """No command talks to a node without the files that its user named."""
    for file in CLI.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("Client", "SyncClient")
            ):
                names = {keyword.arg for keyword in node.keywords}
                takes_target = any("target.url" in ast.unparse(argument) for argument in node.args)
                assert not takes_target or "tls" in names, f"{file.name}:{node.lineno}"

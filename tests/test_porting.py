"""The commands for a port; those that read a bundle are tried in test_bundle.py and test_cli.py."""

from argparse import Namespace
from pathlib import Path

import pytest

from minibert.cli import main
from minibert.porting import refuse_without_model, where


@pytest.fixture
def model(folder: Path) -> str:
    return str(folder)


def test_where_a_model_is() -> None:
    """What a command does not have, such as --allow-pickle of tokenize, is no argument."""
    options = Namespace(model="a", revision="v1", local_files_only=True, json=True)
    assert where(options) == {"revision": "v1", "local_files_only": True}
    with pytest.raises(ValueError, match=r"--revision goes with --model"):
        refuse_without_model(options)
    refuse_without_model(Namespace(revision=None, local_files_only=False, allow_pickle=False))


def test_names(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["names"]) == 0
    assert "encoder.layers.i.attention.context (B, A, T, D)\n" in capsys.readouterr().out
    assert main(["names", "--model", model]) == 0
    assert "encoder.layers.i.attention.context (B, 3, T, 11)\n" in capsys.readouterr().out
    for command in (["names"], ["judge", "bundle", "dump"]):
        assert main([*command, "--revision", "v1"]) == 2
        assert capsys.readouterr().err == "minibert: --revision goes with --model\n"
        assert main([*command, "--local-files-only"]) == 2
        assert capsys.readouterr().err == "minibert: --local-files-only goes with --model\n"
    assert main(["judge", "bundle", "dump", "--allow-pickle"]) == 2
    assert capsys.readouterr().err == "minibert: --allow-pickle goes with --model\n"

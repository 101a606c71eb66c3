import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ODD, PIECES, random_model

from minibert.bert import Bert
from minibert.config import CheckpointError
from minibert.hub import ModelFiles
from minibert.job import Job
from minibert.lines import Position
from minibert.manifest import fingerprint, open_manifest, origin, write_manifest
from minibert.tokenizer import WordPieceTokenizer
from minibert.vectors import Reading

WANTED: dict[str, Any] = {
    "minibert": "1",
    "torch": "2",
    "model": {"name": "m", "commit": None, "sha256": "0"},
    "input": {"name": "i", "field": None, "lines": 3},
    "options": {"layers": (0, 1), "limit": None},
    "layers": [0, 1],
}


def make_bert(seed: int = 0, lowercase: bool = True) -> Bert:
    return Bert(ODD, WordPieceTokenizer(PIECES, lowercase), random_model(ODD, seed=seed))


def test_begin_and_go_on(tmp_path: Path) -> None:
    for name, is_folder in (("out", True), ("out.npy", False)):
        path, manifest = open_manifest(tmp_path / name, is_folder, WANTED, "continue")
        assert path == tmp_path / ("out/manifest.json" if is_folder else "out.npy.manifest.json")
        assert (manifest["done"]["lines"], manifest["complete"], manifest["files"]) == (
            0,
            False,
            [],
        )
        manifest["done"]["lines"] = 2
        write_manifest(path, manifest)
        moved = {**WANTED, "input": {**WANTED["input"], "name": "elsewhere"}}
        for existing in ("continue", "resume"):
            again = open_manifest(tmp_path / name, is_folder, moved, existing)[1]
            assert again == json.loads(json.dumps(manifest))
        assert (
            open_manifest(tmp_path / name, is_folder, WANTED, "overwrite")[1]["done"]["lines"] == 0
        )


def test_what_differs_is_named(tmp_path: Path) -> None:
    open_manifest(tmp_path / "out", True, WANTED, "continue")
    changed = {**WANTED, "torch": "3", "options": {"layers": (0,), "limit": 7}}
    says = (
        r"out was begun with something else: options.layers was \[0, 1\], is \[0\]; options.limit "
        r"was None, is 7; torch.version was '2', is '3'; give --overwrite"
    )
    with pytest.raises(ValueError, match=says):
        open_manifest(tmp_path / "out", True, changed, "continue")


def test_what_is_not_ours_is_kept(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("42")
    (tmp_path / "a.npy").write_text("42")
    for existing in ("continue", "overwrite"):
        with pytest.raises(ValueError, match="out has no manifest: .*thesis.tex is not ours to"):
            open_manifest(tmp_path / "out", True, WANTED, existing)
    with pytest.raises(ValueError, match="a.npy has no manifest"):
        open_manifest(tmp_path / "a.npy", False, WANTED, "continue")
    assert (tmp_path / "a.npy").read_text() == (tmp_path / "out/thesis.tex").read_text() == "42"
    with pytest.raises(ValueError, match="there is nothing to resume: .*none/manifest.json"):
        open_manifest(tmp_path / "none", True, WANTED, "resume")
    assert not (tmp_path / "none").exists()
    with pytest.raises(ValueError, match="out is a folder; give another"):
        open_manifest(tmp_path / "out", False, WANTED, "continue")
    with pytest.raises(ValueError, match=r"a.npy is no folder; give another"):
        open_manifest(tmp_path / "a.npy", True, WANTED, "overwrite")


def test_overwriting_takes_away_what_an_extraction_wrote(tmp_path: Path) -> None:
    open_manifest(tmp_path / "out", True, WANTED, "continue")
    for name in ("vectors-00000.safetensors", "vectors-00001.safetensors.tmp", "vectors.txt"):
        (tmp_path / "out" / name).write_text("1")
    with pytest.raises(ValueError, match="vectors.txt is not ours"):
        open_manifest(tmp_path / "out", True, WANTED, "overwrite")
    (tmp_path / "out" / "vectors.txt").unlink()
    open_manifest(tmp_path / "out", True, WANTED, "overwrite")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["manifest.json"]


def test_overwriting_spares_links_pipes_and_devices(tmp_path: Path) -> None:
    link, pipe = tmp_path / "a.npy", tmp_path / "pipe"
    link.symlink_to(tmp_path / "b.npy")
    os.mkfifo(pipe)
    (tmp_path / "b.npy").write_text("1")
    open_manifest(link, False, WANTED, "overwrite")
    assert link.is_symlink()
    assert not (tmp_path / "b.npy").exists()
    for existing in ("continue", "overwrite"):
        with pytest.raises(ValueError, match="pipe is a pipe or device, no file or fold"):
            open_manifest(pipe, False, WANTED, existing)
    assert pipe.is_fifo()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "null"])
def test_a_broken_manifest(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(CheckpointError, match="cannot read .*manifest.json"):
        open_manifest(tmp_path, True, WANTED, "continue")


def test_a_fingerprint_is_of_everything_that_counts() -> None:
    assert fingerprint(make_bert()) == fingerprint(make_bert())
    others = [make_bert(seed=1), make_bert(lowercase=False), make_bert(), make_bert(), make_bert()]
    with torch.no_grad():
        others[2].model.embeddings.token_type.weight[2, 32] += 1e-7
    others[3].tokenizer.truncation_side = "left"
    others[4].model.to(torch.bfloat16)
    used = make_bert()
    used.tokenizer.encode("a new word")  # what it remembers of words does not count
    assert fingerprint(used) == fingerprint(make_bert())
    assert len({fingerprint(bert) for bert in [used, *others]}) == 6


def test_every_option_is_recorded() -> None:
    job = Job("i", "o", Reading([0, -1], [0.5, 0.5]), limit=7, field="body")
    files = ModelFiles("google-bert/bert-base-cased", commit="0" * 40)
    recorded = origin(make_bert(), job, files, Position(3, 20, "abc"))
    options = recorded["options"]
    told_elsewhere = {"input", "output", "reading", "field"}
    assert {*vars(job), *vars(job.reading)} - {*options} == told_elsewhere
    assert (options["layers"], options["limit"], options["dtype"]) == ([0, -1], 7, "float32")
    assert options["format"] == "safetensors"
    assert recorded["model"]["name"] == "google-bert/bert-base-cased"
    assert recorded["model"]["commit"] == "0" * 40
    size = {"lines": 3, "bytes": 20, "sha256": "abc"}
    assert recorded["input"] == {"name": "i", "field": "body", **size}
    assert origin(make_bert(), job, None, None)["input"]["sha256"] is None

import json
import logging
import re
from pathlib import Path

import pytest
from conftest import run_python

from minibert.cache import sha256
from minibert.config import CheckpointError
from minibert.loading import load
from minibert.source import Pooling, read_pooling

MEAN = {"word_embedding_dimension": 33, "pooling_mode_mean_tokens": True}
PREFIX = "sentence_transformers.models."


def write(folder: Path, kinds: list[str], settings: object) -> Path:
    """The kinds are "Pooling", or "Pooling in folder"; else it is in "1_Pooling"."""
    entries = []
    for number, entry in enumerate(kinds):
        kind, is_elsewhere, path = entry.partition(" in ")
        path = path if is_elsewhere or not number else f"{number}_{kind}"
        entries.append({"idx": number, "name": "a", "path": path, "type": PREFIX + kind})
    (folder / "modules.json").write_text(json.dumps(entries))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    return folder


BOTH = ["Transformer", "Pooling"]


@pytest.mark.parametrize(
    ("kinds", "settings", "expected"),
    [
        ([*BOTH, "Normalize"], MEAN, Pooling("mean", True)),  # all-MiniLM-L6-v2, E5, GTE
        (BOTH, {**MEAN, "pooling_mode_cls_token": False}, Pooling("mean", False)),
        (
            [*BOTH, "Normalize"],  # BGE
            {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
            Pooling("cls", True),
        ),
        (BOTH, {"pooling_mode_lasttoken": True}, Pooling("lasttoken", False)),
        (BOTH, {"pooling_mode": "weightedmean"}, Pooling("weightedmean", False)),
    ],
)
def test_pooling(folder: Path, kinds: list[str], settings: object, expected: Pooling) -> None:
    write(folder, kinds, settings)
    assert read_pooling(folder / "modules.json", folder / "1_Pooling" / "config.json") == expected
    source = load(folder).source
    assert source is not None
    assert source.pooling == expected
    assert {"modules.json", "1_Pooling/config.json"} < source.files.keys()


@pytest.mark.parametrize(
    ("kinds", "settings", "says"),
    [
        ([*BOTH, "Dense", "Normalize"], MEAN, "Dense"),  # LaBSE
        (["Transformer"], MEAN, "Transformer"),
        (BOTH, {**MEAN, "pooling_mode_max_tokens": True}, r"Pooling by \['mean', 'max'\]"),
        (BOTH, {"pooling_mode_mean_tokens": False}, r"Pooling by \[\]"),
        (BOTH, {"pooling_mode": "median"}, "Pooling by median"),
        (BOTH, {"pooling_mode": ["cls", "mean"]}, r"Pooling by \['cls', 'mean'\]"),
        (["Transformer", "Pooling in 2_Pooling"], MEAN, "'Pooling in 2_Pooling'"),
        (["Transformer", "Pooling in "], MEAN, "'Pooling in '"),
        (["Transformer in 0_BERT", "Pooling"], MEAN, "'Transformer in 0_BERT'"),
    ],
)
def test_more_than_pooling_is_said(
    folder: Path, kinds: list[str], settings: object, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = load(write(folder, kinds, settings)).source
    assert source is not None
    assert source.pooling is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().endswith("which minibert lacks")
    assert re.search(says, record.getMessage())


PROMPTS = {"query": "query: ", "document": ""}


@pytest.mark.parametrize(
    ("settings", "prompt"),
    [
        ({"prompts": PROMPTS, "default_prompt_name": "query"}, "query: "),
        ({"prompts": PROMPTS, "default_prompt_name": "document"}, None),
        ({"prompts": PROMPTS, "default_prompt_name": None}, None),
        ({"prompts": PROMPTS, "default_prompt_name": ["query"]}, None),
        ({"prompts": ["query"], "default_prompt_name": "query"}, None),
        ({}, None),
    ],
)
def test_words_before_every_text_are_said(
    folder: Path, settings: object, prompt: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    load(folder)
    assert caplog.messages == []  # without a modules.json it is no model for sentences
    source = load(write(folder, [*BOTH, "Normalize"], MEAN)).source
    assert source is not None
    assert source.pooling == Pooling("mean", True)
    path = folder / "config_sentence_transformers.json"
    says = f"{path}: texts are to begin with {prompt!r}; minibert does not add it"
    assert caplog.messages == ([says] if prompt else [])


@pytest.mark.parametrize("content", ["{}", "[1]", "null", "", "[[]]"])
def test_broken_modules(folder: Path, content: str) -> None:
    (folder / "modules.json").write_text(content)
    with pytest.raises(CheckpointError, match="modules.json"):
        load(folder)


def test_pooling_that_is_missing_or_broken(folder: Path) -> None:
    write(folder, BOTH, [1])
    with pytest.raises(CheckpointError, match="config.json: expected a JSON object, got list"):
        load(folder)
    (folder / "1_Pooling" / "config.json").unlink()
    with pytest.raises(CheckpointError, match="asks for 1_Pooling/config.json, which is not there"):
        load(folder)


def test_minilm(minilm_folder: Path) -> None:
    source = load("minilm").source
    assert source is not None
    assert source.name == "minilm"
    assert source.pooling == Pooling("mean", True)
    published = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    assert source.sha256["model.safetensors"] == published
    assert source.files["model.safetensors"] == minilm_folder / "model.safetensors"


def test_the_record_of_a_folder(folder: Path) -> None:
    source = load(folder).source
    assert source is not None
    assert (source.name, source.commit, source.pooling) == (str(folder), "", None)
    names = {"config.json", "vocab.txt", "tokenizer_config.json", "model.safetensors"}
    assert source.files == {name: folder / name for name in names}
    assert source.sha256 == {name: sha256(folder / name) for name in names}


def test_a_file_that_changed_since_is_not_hashed_for_another(folder: Path) -> None:
    source = load(folder).source
    assert source is not None
    (folder / "vocab.txt").write_text("other")
    with pytest.raises(CheckpointError, match="vocab.txt has changed since it was loaded"):
        _ = source.sha256


def test_weights_of_a_folder_are_not_hashed(folder: Path) -> None:
    """Hashing takes as long as reading; only files of the Hub's cache must be compared."""
    code = f"""
import hashlib, minibert
def refuse(*_, **__):
    raise AssertionError("hashed")
hashlib.sha256 = hashlib.sha1 = refuse
minibert.load({str(folder)!r})
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr

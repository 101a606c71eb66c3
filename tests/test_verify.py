import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import random_model, randomise, write_folder
from safetensors.torch import load_file, save_file
from test_model import MUTATIONS

from minibert import verify as module
from minibert.bert import Bert
from minibert.cli import main
from minibert.config import BertConfig, CheckpointError
from minibert.hub import ModelFiles
from minibert.loading import new_head
from minibert.saving import save
from minibert.tokenizer import WordPieceTokenizer
from minibert.verify import Number, require_pass, to_json, to_table, verify

PUBLISHED = json.loads((Path(module.__file__).with_name("published_numbers.json")).read_text())
MODELS = sorted({entry["model"] for entry in PUBLISHED["sets"]})


@pytest.mark.usefixtures("minilm_folder")
def test_minilm_gives_15_of_15() -> None:
    numbers = verify("minilm")
    assert [number.verdict for number in numbers] == ["pass"] * 15
    assert all(number.source.startswith("sentence-transformers") for number in numbers)


@pytest.mark.usefixtures("minilm_folder")
def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--model", "minilm"]) == 0
    table = capsys.readouterr().out
    assert "\n  cosine[1, 2]                0.141100" in table
    assert table.count("  pass\n") == 15
    assert table.endswith("\n15 of 15 pass\n")
    assert main(["verify", "--model", "minilm", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["passed"], report["failed"], report["not_run"]) == (15, 0, 0)
    assert report["numbers"][0]["expected"] == 0.666
    assert report["numbers"][0]["difference"] < 5e-5  # the rounding of four decimals


def test_a_folder_is_known_by_its_weights(minilm_folder: Path) -> None:
    assert len(verify(minilm_folder)) == 15


@pytest.mark.parametrize("mistake", ["tanh GELU", "eps 1e-5", "segments off by one", "one head"])
def test_a_mistake_fails(minilm: Bert, mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant = module.load("minilm")
    MUTATIONS[mistake](mutant.model)
    monkeypatch.setattr(module, "load", lambda *_, **__: mutant)
    failed = [number for number in verify("minilm") if number.verdict == "FAIL"]
    assert len(failed) > 3
    with pytest.raises(CheckpointError, match=rf"{len(failed)} of 15 numbers failed: cosine\["):
        require_pass(verify("minilm"))
    assert minilm.config == mutant.config
    assert main(["verify", "--model", "minilm"]) == 1


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, folder: Path) -> str:
    """Let a folder pass for a model of the Hub, so that each reading can be run."""
    files = ModelFiles(name, folder)
    real = module.load
    monkeypatch.setattr(module, "find_files", lambda *_: files)
    monkeypatch.setattr(module, "load", lambda *_, head=None, **__: real(folder, head=head))
    return name


CONFIG = BertConfig(
    hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64
)
WORDS = [
    "Hello",
    "world",
    "!",
    "I",
    "'",
    "m",
    "a",
    "model",
    "The",
    "man",
    "worked",
    "as",
    "is",
    ".",
]
UNUSED = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(5, 30522))]


@pytest.fixture
def uncased(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A random bert-base-uncased without heads."""
    folder = write_folder(tmp_path / "uncased", random_model(CONFIG), UNUSED)
    return stand_in(monkeypatch, "google-bert/bert-base-uncased", folder)


def save_with_heads(folder: Path, config: BertConfig, name: str) -> Bert:
    """A random BERT with a random head, which knows the words of the published texts."""
    pieces = [*UNUSED[: config.vocab_size - len(WORDS)], *WORDS]
    bert = Bert(config, WordPieceTokenizer(pieces, lowercase=False), random_model(config))
    bert = new_head(bert, name)
    assert bert.head is not None
    word = bert.model.embeddings.word.weight.detach().clone()
    randomise(bert.head, seed=2)
    bert.model.embeddings.word.weight.data.copy_(word)
    save(bert, folder)
    return bert


def test_every_reading_of_bert_base_is_taken(uncased: str) -> None:
    numbers = verify(uncased)
    total = sum(len(e["numbers"]) for e in PUBLISHED["sets"] if e["model"] == uncased)
    assert len(numbers) == total == 147
    not_run = [number for number in numbers if number.verdict == "not run"]
    assert len(not_run) == 26
    assert {number.needs for number in not_run} == {"the head masked-lm", "the head next-sentence"}
    # A random model gives none of the numbers but by luck; each is read at its own place.
    ran = [number for number in numbers if number.got is not None]
    assert sum(number.verdict == "pass" for number in ran) < 5
    assert len({number.got for number in ran}) > 0.9 * len(ran)


def test_what_is_not_run_is_never_a_pass(uncased: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--model", uncased]) == 1
    captured = capsys.readouterr()
    assert captured.out.count("not run: needs the head masked-lm\n") == 24
    assert captured.out.splitlines()[-1].endswith("of 121 pass; 26 not run")
    assert "of 121 numbers failed: last_hidden_state[0, 1, 1], " in captured.err
    assert captured.err.count("\n") == 1


def test_the_readings_literally(uncased: str) -> None:
    bert = module.load(uncased)
    entry: dict[str, Any] = {"input_ids": [[101, 7, 9, 102]], "texts": ["7 8", "9"]}
    readings = {name: r for name, r in module._READINGS.items() if name not in module._NEEDS}
    with torch.inference_mode():
        states = [bert.model.embeddings(torch.tensor(entry["input_ids"]), torch.zeros(1, 4).long())]
        for layer in bert.model.encoder.layers:
            states.append(layer(states[-1], None))
        read = {name: reading(bert, entry) for name, reading in readings.items()}
        means = [
            bert.model(torch.tensor([[2, *ids, 3]])).last_hidden_state.mean(dim=1)[0]
            for ids in ([7, 8], [9])
        ]
    first, second = (mean / mean.norm() for mean in means)
    total = states[1] + states[2] + states[3] + states[4]
    close = {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(read["last_hidden_state"], states[4], **close)
    torch.testing.assert_close(read["last_four_states"], total, **close)
    cosine = torch.cosine_similarity(total[0, 1], total[0, 3], dim=0)
    torch.testing.assert_close(read["last_four_states_cosine"][1, 3], cosine, **close)
    torch.testing.assert_close(read["cosine"][0, 1], first @ second, **close)
    manhattan = -(first - second).abs().sum()
    torch.testing.assert_close(read["negative_manhattan"][1, 0], manhattan, **close)
    assert read["pooler_output"].shape == (1, 32)


def test_with_heads_every_number_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_with_heads(tmp_path / "uncased", CONFIG, "pretraining")
    name = stand_in(monkeypatch, "google-bert/bert-base-uncased", tmp_path / "uncased")
    numbers = verify(name)
    assert len(numbers) == 147
    assert all(number.got is not None and math.isfinite(number.got) for number in numbers)
    assert sum(number.verdict == "pass" for number in numbers) < 5
    save_with_heads(tmp_path / "one", CONFIG, "next-sentence")
    stand_in(monkeypatch, name, tmp_path / "one")
    assert [number.needs for number in verify(name)].count("the head masked-lm") == 24


def test_a_head_that_is_not_whole_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_with_heads(tmp_path / "uncased", CONFIG, "pretraining")
    tensors = load_file(tmp_path / "uncased" / "model.safetensors")
    del tensors["cls.seq_relationship.bias"]
    save_file(tensors, tmp_path / "uncased" / "model.safetensors", {"format": "pt"})
    name = stand_in(monkeypatch, "google-bert/bert-base-uncased", tmp_path / "uncased")
    with pytest.raises(CheckpointError, match="it lacks 1 tensor: cls.seq_relationship.bias"):
        verify(name)


def test_the_readings_of_heads_literally(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A number of each kind, by transformers; and that it is looked up at its place."""
    transformers = pytest.importorskip("transformers")
    config = dataclasses.replace(CONFIG, vocab_size=28996)
    bert = save_with_heads(tmp_path / "cased", config, "pretraining")
    theirs = transformers.BertForPreTraining.from_pretrained(tmp_path / "cased").eval()
    name = stand_in(monkeypatch, "google-bert/bert-base-cased", tmp_path / "cased")
    ids = bert.tokenizer.encode("Hello world!").input_ids
    numbers = verify(name)
    assert [number.name for number in numbers] == [
        *(f"pseudo_log_likelihood[0, {place}]" for place in (1, 2, 3)),
        "pseudo_log_likelihood_sum[0]",
    ]
    expected = []
    for place in (1, 2, 3):
        masked = torch.tensor([[*ids[:place], 4, *ids[place + 1 :]]])
        with torch.no_grad():
            logits = theirs(masked).prediction_logits[0, place]
        expected.append(logits.log_softmax(-1)[ids[place]].item())
    got = [number.got for number in numbers]
    assert got == pytest.approx([*expected, sum(expected)], abs=1e-4)
    bert = module.load(name, head="pretraining")
    entry: dict[str, Any] = {"input_ids": [ids], "token_type_ids": [[0, 0, 0, 1, 1]]}
    text = {"texts": ["I ' m a [MASK] .", "[MASK]"]}
    with torch.no_grad():
        output = theirs(torch.tensor([ids]), token_type_ids=torch.tensor(entry["token_type_ids"]))
        close = {"rtol": 0, "atol": 1e-5}
        read = module._READINGS
        torch.testing.assert_close(
            read["masked_lm_logits"](bert, entry), output.prediction_logits, **close
        )
        torch.testing.assert_close(
            read["next_sentence_logits"](bert, entry), output.seq_relationship_logits, **close
        )
        filled = read["fill_mask"](bert, text)
        for row, sentence in enumerate(text["texts"]):
            ids = bert.tokenizer.encode(sentence).input_ids
            logits = theirs(torch.tensor([ids])).prediction_logits[0, ids.index(4)]
            # Measured: 2e-6, where one piece gets nearly all.
            torch.testing.assert_close(filled[row], logits.softmax(-1), rtol=0, atol=1e-5)


def test_nothing_published(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"no numbers are published for .*, there are some for g"):
        verify(folder)
    assert main(["verify", "--model", str(folder)]) == 2


def test_verdicts() -> None:
    number = Number("cosine[0, 1]", "somewhere", 0.5, 0.6, 0.05)
    assert number.verdict == "FAIL"
    assert number._replace(got=0.54).verdict == "pass"
    assert number._replace(got=float("nan")).verdict == "FAIL"
    not_run = number._replace(got=None, needs="the head masked-lm")
    assert (not_run.verdict, not_run.difference) == ("not run", None)
    with pytest.raises(CheckpointError, match="none of the 2 published numbers could be run"):
        require_pass([not_run, not_run])
    require_pass([not_run, number._replace(got=0.5)])
    assert to_table([not_run]).endswith("0 of 0 pass; 1 not run")
    assert json.loads(to_json([not_run]))["numbers"][0]["verdict"] == "not run"


def test_the_file() -> None:
    assert len(MODELS) == 4
    assert set(PUBLISHED["weights_sha256"]) <= set(MODELS)
    for entry in PUBLISHED["sets"]:
        assert entry["reading"] in module._READINGS
        assert entry["source"]
        assert ("texts" in entry) != ("input_ids" in entry)
        places = [tuple(place) for place, _ in entry["numbers"]]
        assert len(set(places)) == len(places)


@pytest.mark.hub
@pytest.mark.parametrize("model", MODELS)
def test_the_numbers_of_models_on_the_hub(model: str) -> None:
    try:
        numbers = verify(model)
    except CheckpointError as error:
        pytest.skip(f"{model}: {error}")
    assert all(number.got is not None for number in numbers)
    require_pass(numbers)

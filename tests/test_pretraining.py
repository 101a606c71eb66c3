"""Batches and losses of pre-training, and the program, from texts to a model that has learned."""

import contextlib
import io
import json
import math
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from conftest import ODD, ROOT, random_model, randomise
from safetensors.torch import load_file
from test_instances import PIECES, restored

import minibert
from minibert.config import BertConfig
from minibert.heads import BertWithHead
from minibert.hub import load_tokenizer
from minibert.instance_files import Instances, write_instances
from minibert.instances import Recipe
from minibert.pretraining import Batch, batch, evaluate, loss, predict, steps
from minibert.tokenizer import WordPieceTokenizer

CONFIG = BertConfig(
    **{**vars(ODD), "vocab_size": len(PIECES), "max_position_embeddings": 31, "type_vocab_size": 2}
)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """More would wait for each other: these models are too small to share."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def instances(tmp_path_factory: pytest.TempPathFactory) -> Instances:
    folder = tmp_path_factory.mktemp("pretraining")
    random = Random(0)
    documents = [
        "".join(
            " ".join(f"w{random.randrange(60)}" for _ in range(random.randrange(1, 12))) + "\n"
            for _ in range(10)
        )
        for _ in range(12)
    ]
    (folder / "text").write_text("\n".join(documents))
    tokenizer = WordPieceTokenizer(PIECES, lowercase=True)
    recipe = Recipe(max_length=31, copies=2, short_share=0.5)
    write_instances([str(folder / "text")], tokenizer, recipe, 0, folder / "made")
    return Instances(folder / "made")


def new_bert(instances: Instances, dtype: torch.dtype = torch.float64) -> minibert.Bert:
    bert = minibert.Bert(CONFIG, instances.tokenizer, random_model(CONFIG, dtype))
    bert = minibert.new_head(bert, "pretraining")
    assert bert.head is not None
    randomise(bert.head, seed=1)
    bert.head.eval()
    return bert


def with_head(bert: minibert.Bert) -> BertWithHead:
    assert bert.head is not None
    return BertWithHead(bert.model, bert.head)


def test_a_batch_has_all_of_its_instances(instances: Instances) -> None:
    some = list(islice(instances, 9))
    made = batch(some, 1.0, pad=0)
    assert len({len(i.input_ids) for i in some}) > 2
    ids = made.input_ids.clone()
    ids.view(-1)[made.places] = made.pieces
    for row, instance in enumerate(some):
        length = len(instance.input_ids)
        assert made.input_ids[row, :length].tolist() == instance.input_ids
        assert ids[row, :length].tolist() == restored(instance)
        assert made.input_ids[row, length:].eq(0).all()
        assert made.attention_mask[row].tolist() == [1] * length + [0] * (ids.shape[1] - length)
        second = length - instance.first
        assert made.token_type_ids[row, :length].tolist() == [0] * instance.first + [1] * second
        assert made.token_type_ids[row, length:].eq(0).all()
        assert made.is_random[row] == instance.is_random_next
    assert len(made.places) == sum(len(i.positions) for i in some)


def test_steps_can_begin_anywhere(instances: Instances) -> None:
    source = steps(instances, 10, 4, seed=3)
    whole = list(islice(source(0), 60))
    assert 10 * len(whole) > 2 * len(instances)
    for first in (1, 7, 55):
        for one, other in zip(source(first), whole[first:], strict=False):
            for mine, yours in zip(one, other, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(mine[:-1], yours[:-1], strict=True))
                assert mine.weight == yours.weight
            if first == 55:
                continue
            break
    for step in whole:
        assert [len(part.input_ids) for part in step] == [4, 4, 2]
        widths = [part.input_ids.shape[1] for part in step]
        assert widths == sorted(widths)
        pieces = sum(len(part.pieces) for part in step)
        assert all(part.weight == 10 / pieces for part in step)


def test_the_loss_is_that_of_transformers(instances: Instances, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    bert = new_bert(instances)
    minibert.save(bert, tmp_path / "bert")
    theirs = transformers.BertForPreTraining.from_pretrained(tmp_path / "bert", dtype="float64")
    (made,) = next(steps(instances, 12, 12, seed=0)(0))
    labels = torch.full_like(made.input_ids, -100)
    labels.view(-1)[made.places] = made.pieces
    with torch.no_grad():
        expected = theirs(
            made.input_ids,
            token_type_ids=made.token_type_ids,
            attention_mask=made.attention_mask,
            labels=labels,
            next_sentence_label=made.is_random,
        )
        total, count = loss(with_head(bert), made)
        found = predict(with_head(bert), made)
    assert count == 12
    assert float(total) / count == pytest.approx(float(expected.loss), abs=1e-12)
    chosen = expected.prediction_logits.flatten(0, 1)[made.places]
    assert (found.prediction - chosen).abs().max() < 1e-11
    assert (found.seq_relationship - expected.seq_relationship_logits).abs().max() < 1e-12


def gradients(model: BertWithHead, step: list[Batch]) -> list[torch.Tensor]:
    model.zero_grad()
    total = 0
    for part in step:
        one, count = loss(model, part)
        one.backward()  # type: ignore[no-untyped-call]
        total += count
    return [p.grad / total for p in model.parameters() if p.grad is not None]


def test_micro_batches_change_nothing(instances: Instances) -> None:
    """Though each has another number of pieces to predict, and other padding."""
    model = with_head(new_bert(instances))
    whole = gradients(model, next(steps(instances, 13, 13, seed=0)(0)))
    for size in (1, 5):
        parts = next(steps(instances, 13, size, seed=0)(0))
        assert len({len(part.pieces) / len(part.is_random) for part in parts}) > 1
        for one, other in zip(whole, gradients(model, parts), strict=True):
            assert (one - other).abs().max() < 1e-12


def test_nothing_to_predict(instances: Instances) -> None:
    """As where all words are longer than what may be masked: only the pair counts."""
    model = with_head(new_bert(instances))
    empty = next(iter(instances))._replace(positions=[], labels=[])
    made = batch([empty], 1.0, pad=0)
    with torch.no_grad():
        total, count = loss(model, made)
        scores = predict(model, made).seq_relationship[0]
    assert count == 1
    assert float(total) == pytest.approx(float(-scores.log_softmax(-1)[made.is_random]), abs=1e-12)


def test_evaluation(instances: Instances) -> None:
    model = with_head(new_bert(instances))
    everything = batch(list(instances), 1.0, 0)
    with torch.no_grad():
        logits = predict(model, everything)
        found = evaluate(model, instances, 7)
    rows = torch.arange(len(everything.pieces))
    of_pieces = -logits.prediction.log_softmax(-1)[rows, everything.pieces].mean()
    pairs = torch.arange(len(instances))
    of_pairs = -logits.seq_relationship.log_softmax(-1)[pairs, everything.is_random].mean()
    expected = {
        "loss": of_pieces + of_pairs,
        "masked_lm": of_pieces,
        "masked_accuracy": (logits.prediction.argmax(-1) == everything.pieces).double().mean(),
        "next_sentence": of_pairs,
        "next_accuracy": (logits.seq_relationship.argmax(-1) == everything.is_random)
        .double()
        .mean(),
    }
    # evaluate takes the loss in float32, whatever the model computes in
    assert found == {name: pytest.approx(float(n), abs=1e-5) for name, n in expected.items()}


@pytest.mark.parametrize("sizes", [(0, 1), (1, 0)])
def test_sizes_without_sense(sizes: tuple[int, int], instances: Instances) -> None:
    with pytest.raises(ValueError, match="1 instance or more"):
        steps(instances, *sizes, seed=0)


SCRIPT = str(ROOT / "scripts" / "pretrain.py")
ONE_CORE = {**os.environ, "OMP_NUM_THREADS": "1"}


def pretrain(*arguments: object) -> str:
    """What a command of the program prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        runpy.run_path(SCRIPT)["main"]([*map(str, arguments)])
    return printed.getvalue()


def apart(*arguments: object) -> list[str]:
    """A command of the program, for a process of its own."""
    return [sys.executable, SCRIPT, *map(str, arguments)]


def refused(*arguments: object) -> str:
    """The one line that it says when it cannot."""
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(SCRIPT)["main"]([*map(str, arguments)])
    line = stopped.value.code
    assert isinstance(line, str)
    assert "\n" not in line
    return line


def test_stopped_by_ctrl_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = runpy.run_path(SCRIPT)

    def stop(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(script["main"].__globals__, "make_vocabulary", stop)
    with pytest.raises(SystemExit) as stopped:
        script["main"](["vocabulary", "texts", "--output", str(tmp_path)])
    assert stopped.value.code == 130


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]


LANGUAGE = ("sun", "moon", "star", "rain", "snow", "wind", "tree", "leaf")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of a language in which a word says all others of its sentence, and their instances."""
    folder = tmp_path_factory.mktemp("language")
    random = Random(0)
    for name, documents in (("train", 60), ("dev", 10)):
        texts = []
        for _ in range(documents):
            words = [random.choice(LANGUAGE) for _ in range(12)]
            texts.append("".join(f"{word} {word} {word} {word}.\r\n" for word in words))
        (folder / f"{name}.txt").write_text("\r\n".join(["", *texts, ""]))
    printed = pretrain("vocabulary", folder / "train.txt", "--size", 40, "--output", folder / "own")
    assert "fewer than 40" not in printed
    for name in ("train", "dev"):
        printed = pretrain(
            *("instances", folder / f"{name}.txt", "--tokenizer", folder / "own"),
            *("--output", folder / name, "--max-length", 24, "--copies", 2),
        )
        assert "unigram entropy" in printed
    return folder


SIZES = ("--layers", 1, "--hidden", 32, "--heads", 2, "--batch-size", 16, "--micro-batch", 8)


def test_a_cased_vocabulary_keeps_accents(tmp_path: Path) -> None:
    (tmp_path / "texts").write_text("Été, café\n")
    for more, pieces in ((["--cased"], {"É", "##é"}), ([], {"e", "##e"})):
        folder = tmp_path / f"own{len(more)}"
        pretrain("vocabulary", tmp_path / "texts", "--size", 60, "--output", folder, *more)
        tokenizer = load_tokenizer(folder)
        assert pieces < set(tokenizer.vocabulary)
        assert "[UNK]" not in tokenizer.encode("Été, café").tokens


def test_it_learns_what_frequencies_do_not_tell(made: Path, tmp_path: Path) -> None:
    printed = pretrain(
        *("train", made / "train", "--output", tmp_path / "run", *SIZES, "--dropout", 0),
        *("--steps", 250, "--warmup", 20, "--learning-rate", 5e-3),
        *("--evaluate", made / "dev", "--evaluate-every", 50),
    )
    entropy = Instances(made / "dev").unigram_entropy
    last = log(tmp_path / "run")[-1]["evaluation"]
    assert entropy > 2
    assert last["masked_lm"] < 0.7 * entropy
    assert f"unigram entropy {entropy:.4f}" in printed
    if "no curve" not in printed:
        assert (tmp_path / "run" / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_minibert_and_transformers_read_the_result(made: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    options = ("--steps", 5, "--warmup", 1, "--optimizer", "lamb", "--learning-rate", 1e-2)
    pretrain("train", made / "train", "--output", tmp_path / "run", *SIZES, *options)
    folder = tmp_path / "run" / "model"
    bert = minibert.load(folder, head="auto")
    theirs = transformers.BertForPreTraining.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = ("Sun sun moon.", "rain rainy [MASK]")
    inputs = tokenizer(*text, return_tensors="pt")
    assert inputs["input_ids"][0].tolist() == bert.tokenizer.encode(*text).input_ids
    with torch.no_grad():
        expected = theirs(**inputs)
        found = with_head(bert)(inputs["input_ids"], inputs["token_type_ids"])
    assert (found.prediction - expected.prediction_logits).abs().max() < 1e-5
    assert (found.seq_relationship - expected.seq_relationship_logits).abs().max() < 1e-5
    # and it is trained further from there
    more = ("--start", folder, "--steps", 2, "--warmup", 0, "--batch-size", 8)
    pretrain("train", made / "dev", "--output", tmp_path / "more", *more)
    assert minibert.load(tmp_path / "more" / "model").config == bert.config


def test_killed_and_begun_again(made: Path, tmp_path: Path) -> None:
    options = ("--steps", 25, "--warmup", 5, "--save-every", 4, "--evaluate", made / "dev")
    options += ("--evaluate-every", 6, "--optimizer", "lamb", *SIZES)
    whole = apart("train", made / "train", "--output", tmp_path / "whole", *options)
    subprocess.run(whole, env=ONE_CORE, check=True, capture_output=True)
    folder = tmp_path / "killed"
    command = apart("train", made / "train", "--output", folder, *options)
    path = folder / "run" / "log.jsonl"
    for steps_done in (6, 18):
        process = subprocess.Popen(command, env=ONE_CORE, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            if path.exists() and path.read_bytes().count(b"learning_rate") >= steps_done:
                break
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not (folder / "model").exists()
    subprocess.run(command, env=ONE_CORE, check=True, capture_output=True)
    for name in ("run/log.jsonl", "model/model.safetensors"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_two_processes_are_as_one(made: Path, tmp_path: Path) -> None:
    options = ("--steps", 8, "--warmup", 2, "--dropout", 0, *SIZES)
    options += ("--evaluate", made / "dev", "--evaluate-every", 4)
    pretrain("train", made / "train", "--output", tmp_path / "one", *options)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", 2]
    torchrun += ["--master-port", 29_000 + os.getpid() % 1000]
    command = [*torchrun, SCRIPT, "train", made / "train", "--output", tmp_path / "two", *options]
    subprocess.run([*map(str, command)], env=ONE_CORE, check=True, capture_output=True)
    for one, two in zip(log(tmp_path / "one"), log(tmp_path / "two"), strict=True):
        assert one.get("loss", 0) == pytest.approx(two.get("loss", 0), abs=1e-5)
    one, two = (load_file(tmp_path / n / "model" / "model.safetensors") for n in ("one", "two"))
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-5


def test_what_cannot_be_is_one_line(made: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    (tmp_path / "empty").write_text("")
    (tmp_path / "latin1").write_bytes("Caf\xe9.\n\nThe.\n".encode("latin1"))
    (tmp_path / "folder").mkdir()
    for name, *options in (["vocabulary"], ["instances", "--tokenizer", made / "own"]):
        options += ["--output", new]
        nothing = "no word" if name == "vocabulary" else "no sentence"
        assert "is not UTF-8" in refused(name, tmp_path / "latin1", *options)
        assert nothing in refused(name, tmp_path / "empty", *options)
        assert "there is no file in" in refused(name, tmp_path / "folder", *options)
        assert "there is no file or folder" in refused(name, tmp_path / "nowhere", *options)
    assert "ask for more" in refused("vocabulary", made / "train.txt", "--size", 9, "--output", new)
    training = ("train", made / "train", "--output", new, *SIZES)
    assert "not a multiple" in refused(*training, "--heads", 5)
    assert "device 'abacus' cannot be used" in refused(*training, "--device", "abacus")
    assert "cannot read" in refused("train", tmp_path, "--output", new)
    start = ("--start", tmp_path / "folder")
    assert "no file config.json" in refused("train", made / "train", "--output", new, *start)
    assert "with --start it plays no part" in refused(*training, *start)  # sizes are those of it
    assert not (new / "run" / "checkpoint.pt").exists()
    few = ("--steps", 2, "--warmup", 0)
    pretrain(*training, *few)
    for other in (("--seed", 1), ("--heads", 4), ("--dropout", 0.3)):  # the last two: same weights
        assert "is of another run" in refused(*training, *few, *other)
    assert "is of another run" in refused("train", made / "dev", *training[2:], *few)


def test_a_loss_that_is_not_a_number(made: Path, tmp_path: Path) -> None:
    options = ("--steps", 40, "--warmup", 0, "--save-every", 1, "--learning-rate", 1e30)
    training = ("train", made / "train", "--output", tmp_path / "run", *SIZES, *options)
    line = refused(*training)
    assert "take a lower learning rate" in line
    assert (tmp_path / "run" / "run" / "checkpoint.pt").exists() == ("is kept" in line)


def test_on_real_text(shared: Callable[[str], Path], tmp_path: Path) -> None:
    """A few steps of the real run: from all pieces alike to their frequencies."""
    with shared("corpus.txt").open(encoding="utf-8") as file:
        lines = [*islice(file, 1500)]
    documents = ["".join(lines[n : n + 15]) for n in range(0, len(lines), 15)]
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a").write_text("\n".join(documents[:50]))
    (tmp_path / "text" / "b").write_text("\n".join(documents[50:90]))
    (tmp_path / "dev").write_text("\n".join(documents[90:]))
    pretrain("vocabulary", tmp_path / "text", "--size", 500, "--output", tmp_path / "own")
    for name, texts in (("train", "text"), ("held-out", "dev")):
        own = ("--tokenizer", tmp_path / "own", "--output", tmp_path / name)
        pretrain("instances", tmp_path / texts, *own, "--copies", 1, "--max-length", 64)
    pretrain(
        *("train", tmp_path / "train", "--output", tmp_path / "run", "--dropout", 0),
        *("--layers", 2, "--hidden", 64, "--batch-size", 32, "--steps", 40, "--warmup", 10),
        *("--learning-rate", 3e-3, "--evaluate", tmp_path / "held-out"),
    )
    evaluation = log(tmp_path / "run")[-1]["evaluation"]
    frequencies = Instances(tmp_path / "train").unigram_entropy
    assert frequencies < 0.9 * math.log(500)
    assert evaluation["masked_lm"] < frequencies + 0.5  # 0.2 as it was measured

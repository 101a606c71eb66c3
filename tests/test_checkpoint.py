import dataclasses
import importlib
import importlib.util
import json
import logging
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ODD, PIECES, random_model, run_python, their_model, write_folder
from safetensors.torch import load_file, save_file
from torch import Tensor

from minibert.bert import Bert
from minibert.checkpoint import load_model
from minibert.config import BertConfig, CheckpointError
from minibert.glossary import NAMES, checkpoint_names
from minibert.loading import load
from minibert.model import BertModel


def edit_tensors(folder: Path, edit: object) -> None:
    """Change the dict of a folder's tensors in place."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)  # type: ignore[operator]
    save_file(tensors, path)


def same(first: BertModel, second: BertModel) -> bool:
    theirs = second.state_dict()
    mine = first.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


def test_the_table_covers_every_tensor_once() -> None:
    for has_pooler, count in ((True, 199), (False, 197)):
        with torch.device("meta"):
            model = BertModel(BertConfig(), has_pooler)
        names = checkpoint_names(BertConfig(), has_pooler)
        assert list(names) == list(dict.fromkeys(names))
        assert names.keys() == model.state_dict().keys()
        assert len(set(names.values())) == len(names) == count
    assert len(NAMES) == 23


def test_every_tensor_of_transformers_arrives(tmp_path: Path) -> None:
    # Tensor by tensor, because a lost key bias shows in no output.
    model = random_model(ODD)
    theirs = their_model(model)
    theirs.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert same(loaded, model)
    expected = theirs.state_dict()
    for own, name in checkpoint_names(ODD).items():
        assert torch.equal(loaded.state_dict()[own], expected[name]), own


def test_every_tensor_of_minilm_arrives(minilm_folder: Path, minilm: Bert) -> None:
    stored = load_file(minilm_folder / "model.safetensors")
    assert stored.pop("embeddings.position_ids").tolist() == [list(range(512))]
    state = minilm.model.state_dict()
    names = checkpoint_names(minilm.config)
    assert {names[own] for own in state} == stored.keys()
    for own, tensor in state.items():
        assert torch.equal(tensor, stored[names[own]]), own


def test_a_loaded_model_is_ready(folder: Path) -> None:
    model = load_model(folder)
    assert not any(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(tensor.is_meta for tensor in model.state_dict().values())
    model(torch.tensor([[1, 2]])).last_hidden_state.sum().backward()


def test_names_of_other_writers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A prefix, TensorFlow's gamma and beta, a counting buffer, heads: as bert-base-uncased has."""
    model = random_model(ODD)
    folder = write_folder(tmp_path, model, prefix="bert.")

    def edit(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            old = re.sub("LayerNorm.weight$", "LayerNorm.gamma", name)
            old = re.sub("LayerNorm.bias$", "LayerNorm.beta", old)
            tensors[old] = tensors.pop(name)
        tensors["bert.embeddings.position_ids"] = torch.arange(17)[None]
        tensors["cls.predictions.bias"] = torch.zeros(len(PIECES))
        tensors["cls.seq_relationship.weight"] = torch.zeros(2, 33)
        tensors["crf.a"] = torch.zeros(2, 2)
        tensors["lm_head.weight"] = torch.zeros(1)

    edit_tensors(folder, edit)
    with caplog.at_level(logging.INFO, logger="minibert"):
        assert same(load_model(folder), model)
    assert [record.getMessage() for record in caplog.records] == [
        f"{folder / 'model.safetensors'}: left out the heads: "
        "4 tensors: cls.predictions.bias, cls.seq_relationship.weight, crf.a, lm_head.weight"
    ]


@pytest.mark.parametrize("name", ["evil\nname", "evil\x1b[2J", "z" * 10**5])
def test_names_are_told_in_one_line(
    folder: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    edit_tensors(folder, lambda t: t.update({f"cls.{name}": BIAS}))
    with caplog.at_level(logging.INFO, logger="minibert"):
        load_model(folder)
    edit_tensors(folder, lambda t: t.update({name: BIAS}))
    with pytest.raises(CheckpointError, match="has unexpected 1 tensor: ") as raised:
        load_model(folder)
    for told in (caplog.messages[0], str(raised.value)):
        assert told.isprintable()
        assert len(told) < 400


def test_without_pooler(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, BertModel(ODD, has_pooler=False))
    model = load_model(folder)
    assert model.pooler is None
    assert model(torch.tensor([[1]])).pooler_output is None


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(tmp_path: Path, stored: torch.dtype) -> None:
    model = random_model(ODD, stored)
    folder = write_folder(tmp_path, model)
    loaded = load_model(folder)
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.float32}
    assert same(loaded, model.float())
    half = load_model(folder, dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in half.state_dict().values()} == {torch.bfloat16}


def test_bad_targets(folder: Path) -> None:
    with pytest.raises(ValueError, match="device 'gpu' cannot be used here: "):
        load_model(folder, device="gpu")
    with pytest.raises(
        ValueError, match=r"dtype must be one of torch.float64, .*, got torch.int64"
    ):
        load_model(folder, dtype=torch.int64)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device 'cuda' cannot be used here: "):
            load_model(folder, device="cuda")


KEY = "encoder.layer.1.attention.self.key.bias"
BIAS = torch.ones(33)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda t: t.pop(KEY), f"it lacks 1 tensor: {KEY}"),
        (lambda t: [t.pop(k) for k in list(t) if "layer.2" in k], r"lacks 16 .* and 6 more"),
        (lambda t: t.clear(), "has 0 tensors, too few for 3 layers"),
        (lambda t: t.pop("pooler.dense.bias"), "it lacks 1 tensor: pooler.dense.bias"),
        (lambda t: t.update(extra=torch.ones(1)), "has unexpected 1 tensor: extra"),
        (lambda t: t.update(clsx=torch.ones(1)), "has unexpected 1 tensor: clsx"),
        (
            lambda t: t.update(
                {"bert." + k: t.pop(k) for k in list(t)} | {"bert.a": torch.ones(1)}
            ),
            "has unexpected 1 tensor: bert.a",
        ),
        (
            lambda t: t.update({"model." + k: t.pop(k) for k in list(t)}),
            "has the names of a BERT with model. before them; save it without that",
        ),
        (
            lambda t: t.update({"module.bert." + k: t.pop(k) for k in list(t)}),
            "has the names of a BERT with module. before them; save it without that",
        ),
        (
            lambda t: t.update({KEY: torch.ones(34)}),
            rf"has misshapen 1 tensor: {KEY} F32 \[34\] for \[33\]",
        ),
        (lambda t: t.update({KEY: torch.ones(33).int()}), rf"misshapen .*{KEY} I32 \[33\]"),
        (
            lambda t: t.update({"embeddings.LayerNorm.gamma": torch.ones(33)}),
            "has embeddings.LayerNorm.* which are the same",
        ),
        (lambda t: t.update({"bert." + KEY: torch.ones(33)}), f"{KEY}.* which are the same"),
    ],
)
def test_tensors_that_do_not_fit(folder: Path, edit: object, says: str) -> None:
    edit_tensors(folder, edit)
    with pytest.raises(CheckpointError, match=says) as raised:
        load_model(folder)
    assert str(folder / "model.safetensors") in str(raised.value)


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
def test_weights_that_are_no_numbers(
    folder: Path, number: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def edit(tensors: dict[str, Tensor]) -> None:
        tensors[KEY][7] = float(number)
        tensors["pooler.dense.bias"][0] = float("inf")

    edit_tensors(folder, edit)
    says = (
        f"has numbers that are NaN or infinite in this dtype, in 2 tensors: {KEY}, "
        "pooler.dense.bias; MINIBERT_ALLOW_NAN=1 in the environment admits them"
    )
    with pytest.raises(CheckpointError, match=says):
        load_model(folder)
    monkeypatch.setenv("MINIBERT_ALLOW_NAN", "1")
    bias = load_model(folder).state_dict()["encoder.layers.1.attention.key.bias"]
    assert bias.isfinite().tolist() == [index != 7 for index in range(33)]


def test_numbers_that_another_dtype_cannot_hold(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors[KEY].fill_(1e6))
    assert load_model(folder).state_dict()["encoder.layers.1.attention.key.bias"][0] == 1e6
    with pytest.raises(CheckpointError, match=f"infinite in this dtype, in 1 tensor: {KEY}"):
        load_model(folder, dtype=torch.float16)


def test_a_large_sum_of_finite_numbers_is_fine(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors[KEY].fill_(3e38))
    load_model(folder)


@pytest.mark.parametrize(
    ("counter", "is_right"),
    [
        (torch.arange(17)[None], True),
        (torch.arange(17).int(), True),
        (torch.arange(1, 18)[None], False),
        (torch.arange(17)[None].float(), False),
        (torch.arange((1 << 20) + 1), False),  # a file of holes can have any number of them
    ],
)
def test_stray_position_ids(folder: Path, counter: Tensor, is_right: bool) -> None:
    edit_tensors(folder, lambda t: t.update({"embeddings.position_ids": counter}))
    if is_right:
        load_model(folder)
    else:
        with pytest.raises(CheckpointError, match="position_ids does not count 0, 1, 2, ...: not"):
            load_model(folder)


def test_code_of_its_own_is_never_run(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = folder / "config.json"
    auto_map = {"AutoModel": "evil.Model"}
    path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": auto_map}))
    (folder / "evil.py").write_text("raise SystemExit('it ran')")
    load_model(folder)
    (record,) = caplog.records
    assert "asks for code of its own (auto_map); minibert never runs it" in record.getMessage()


@pytest.mark.parametrize("layers", [2, 4])
def test_another_number_of_layers(folder: Path, layers: int) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": layers}))
    says = "has unexpected 16 tensors" if layers == 2 else "lacks 16 tensors"
    with pytest.raises(CheckpointError, match=says):
        load_model(folder)


@pytest.mark.parametrize("named", [5, "BertModel", [5], {"a": 1}, ["x\n" * 10**5]])
def test_architectures_that_are_none(folder: Path, named: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "architectures": named}))
    load_model(folder)
    with pytest.raises(CheckpointError, match="a head that minibert does not have") as raised:
        load(folder, head="auto")
    assert len(str(raised.value)) < 300


def test_absurdly_many_layers_allocate_nothing(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": 10**7}))
    with pytest.raises(CheckpointError, match="has 55 tensors, too few for 10000000 layers"):
        load_model(folder)


def test_names_are_compared_before_anything_is_built(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand layers take seconds and a gigabyte, even without memory for their weights."""
    edit_tensors(folder, lambda t: t.update({f"{n}": torch.ones(0) for n in range(999)}))
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": 130}))
    monkeypatch.setattr("minibert.checkpoint.BertModel", None)
    with pytest.raises(CheckpointError, match=r"lacks 2032 tensors: .*; has unexpected 999 tensor"):
        load_model(folder)


def cut(content: bytes) -> bytes:
    return content[:-1000]


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        lambda content: content + b"\0",
        lambda _: b"",
        lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        lambda content: struct.pack("<Q", 2**63) + content[8:],
    ],
    ids=["cut", "longer", "empty", "LFS pointer", "header of 2**63"],
)
def test_broken_weights(folder: Path, damage: object) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=r"model.safetensors is broken \(.*download it again"):
        load_model(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_files(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"{folder} has no file {name}"):
        load_model(folder)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is not a readable JSON file"),
        ("[]", "expected a JSON object, got list"),
        ('{"model_type": "roberta"}', "model_type 'roberta' is not supported, only 'bert' is"),
        ('{"hidden_size": 1000000000000}', "hidden_size must be an int from 1 to"),
        ('{"hidden_size": 770}', "770 is not a multiple of num_attention_heads 12"),
        ("[" * 100_000, "is not a readable JSON file"),
    ],
)
def test_bad_configs(folder: Path, content: str, says: str) -> None:
    (folder / "config.json").write_text(content)
    (folder / "model.safetensors").unlink()  # a bad config is told before the weights are wanted
    with pytest.raises(CheckpointError, match=says):
        load_model(folder)


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_a_file_that_shrinks_after_loading_does_no_harm(folder: Path) -> None:
    # On a memory map this would end the process by SIGBUS.
    code = f"""
import os, torch
from minibert.checkpoint import load_model
model = load_model({str(folder)!r})
os.truncate({str(folder / "model.safetensors")!r}, 0)
assert "model.safetensors" not in open("/proc/self/maps").read()
print(model(torch.tensor([[1, 2, 3]])).last_hidden_state.isfinite().all().item())
"""
    result = run_python(code)
    assert (result.returncode, result.stdout) == (0, "True\n"), result.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_memory_and_imports(tmp_path: Path) -> None:
    """Loading adds at most 1.2 times the file to the memory, at any moment; and imports little."""
    config = BertConfig(vocab_size=100_000, hidden_size=768, num_hidden_layers=4)
    folder = write_folder(tmp_path, random_model(config), PIECES)
    size = (folder / "model.safetensors").stat().st_size
    assert size > 400e6
    code = f"""
import re, sys
import torch
modules = set(sys.modules)
def kib(field):
    return int(re.search(field + r":\\s+(\\d+)", open("/proc/self/status").read())[1])
from minibert.checkpoint import load_model
open("/proc/self/clear_refs", "w").write("5")  # forget the peak so far
before = kib("VmRSS")
model = load_model({str(folder)!r})
print((kib("VmRSS") - before) * 1024, (kib("VmHWM") - before) * 1024)
# A random start on the meta device would import this, which takes a second.
assert "torch._dynamo" not in set(sys.modules) - modules
assert "huggingface_hub.file_download" not in sys.modules, "a folder needs no client"
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    resident, peak = map(int, result.stdout.split())
    assert size <= resident <= 1.2 * size
    assert peak <= 1.2 * size


# A small checkpoint as google-research/bert's training would save it, with its names and layouts.
WRITE_TF = """
import json, sys
from pathlib import Path
import tensorflow as tf
from safetensors.numpy import load_file
folder = Path(sys.argv[1])
with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    for name, tensor in load_file(folder / "model.safetensors").items():
        stem, _, ending = name.replace("encoder.layer.", "encoder.layer_").rpartition(".")
        stem = "bert/" + stem.replace(".", "/")
        if ending == "weight" and stem.endswith("_embeddings"):
            place = stem
        elif stem.endswith("LayerNorm"):
            place = stem + ("/gamma" if ending == "weight" else "/beta")
        else:
            place = stem + ("/kernel" if ending == "weight" else "/bias")
        tensor = tensor.T if place.endswith("/kernel") else tensor
        tf.compat.v1.get_variable(place, initializer=tensor)
        tf.compat.v1.get_variable(place + "/adam_m", initializer=tensor)
    for place, shape in json.loads(sys.argv[2]).items():
        tf.compat.v1.get_variable(place, shape)
    tf.compat.v1.get_variable("global_step", initializer=7)
    session.run(tf.compat.v1.global_variables_initializer())
    tf.compat.v1.train.Saver().save(session, str(folder / "bert_model.ckpt"))
"""

HEADS = {
    "cls/predictions/transform/dense/kernel": [33, 33],
    "cls/predictions/transform/dense/bias": [33],
    "cls/predictions/transform/LayerNorm/gamma": [33],
    "cls/predictions/transform/LayerNorm/beta": [33],
    "cls/predictions/output_bias": [len(PIECES)],
    "cls/seq_relationship/output_weights": [2, 33],
    "cls/seq_relationship/output_bias": [2],
}
CONVERT = str(Path(__file__).parents[1] / "scripts" / "convert_tf_checkpoint.py")


@pytest.fixture
def tf_folder(folder: Path) -> Path:
    """A released folder of Google's, of the same random model as `folder` had."""
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("tensorflow is not installed; pip install tensorflow-cpu")
    quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", WRITE_TF, str(folder), json.dumps(HEADS)]
    subprocess.run(command, check=True, env=quiet, capture_output=True)
    config = json.loads((folder / "config.json").read_text())
    for key in ("model_type", "layer_norm_eps", "pad_token_id"):  # as Google's files lack them
        del config[key]
    (folder / "bert_config.json").write_text(json.dumps(config))
    for name in ("config.json", "model.safetensors", "tokenizer_config.json"):
        (folder / name).unlink()
    return folder


def convert(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, CONVERT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def test_a_checkpoint_of_tensorflow(tf_folder: Path, tmp_path: Path) -> None:
    says = "only bert_model.ckpt.index, TensorFlow's; scripts/convert_tf_checkpoint.py converts it"
    (tf_folder / "config.json").write_text((tf_folder / "bert_config.json").read_text())
    with pytest.raises(CheckpointError, match=says):
        load_model(tf_folder)
    target = tmp_path / "converted"
    result = convert(tf_folder, target, "--uncased")
    assert result.returncode == 0, result.stderr
    assert same(load_model(target), random_model(ODD))
    bert = load(target)
    assert bert.config == dataclasses.replace(ODD, layer_norm_eps=1e-12, pad_token_id=0)
    assert bert.tokenizer.tokenize("The Walrus") == ["the", "wa", "##l", "##rus"]
    names = load_file(target / "model.safetensors").keys()
    transformers = pytest.importorskip("transformers")
    theirs, loading = transformers.BertForPreTraining.from_pretrained(
        target, output_loading_info=True
    )
    assert not any(loading.values()), loading
    assert names <= theirs.state_dict().keys()


def test_what_cannot_be_converted(tf_folder: Path, tmp_path: Path) -> None:
    for arguments, says in (
        ((tf_folder, tmp_path / "new"), "one of the arguments --uncased --cased is required"),
        ((tf_folder, tmp_path / "new", "--cased", "--checkpoint", "x"), "not a whole TensorFlow"),
        (
            (tf_folder, tmp_path / "new", "--cased", "--checkpoint", "bert_model.ckpt.index"),
            "bert_model.ckpt.index has no tensors; give what all its files' names begin with",
        ),
        ((tmp_path, tmp_path / "new", "--cased"), "bert_config.json: No such file"),
        ((tf_folder, tf_folder, "--cased"), "which would be lost; take a new folder"),
    ):
        result = convert(*arguments)
        assert result.returncode != 0
        assert says in result.stderr
    assert not (tmp_path / "new").exists()


def test_a_broken_checkpoint_of_tensorflow(tf_folder: Path, tmp_path: Path) -> None:
    prefix = tf_folder / "bert_model.ckpt"
    data, index = Path(f"{prefix}.data-00000-of-00001"), Path(f"{prefix}.index")
    for damage in (
        lambda: os.truncate(data, data.stat().st_size // 2),
        data.unlink,
        lambda: index.write_bytes(b"x" * 999),
    ):
        damage()
        told = convert(tf_folder, tmp_path / "new", "--uncased").stderr
        assert told.startswith(
            f"convert_tf_checkpoint: {prefix} is not a whole TensorFlow checkpoint: "
        )
        assert told.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_a_folder_that_does_not_load_is_not_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is wrong is told of the folder that was read; the new one is gone by then."""
    monkeypatch.syspath_prepend(str(Path(CONVERT).parent))
    script = importlib.import_module("convert_tf_checkpoint")
    stored = load_file(folder / "model.safetensors")
    tensors = {name: tensor.numpy() for name, tensor in stored.items()}
    del tensors[KEY]
    monkeypatch.setattr(script, "read_tensors", lambda _: tensors)
    (folder / "config.json").rename(folder / "bert_config.json")
    says = f"^{folder}/model.safetensors does not fit its config.json: it lacks 1 tensor: {KEY}$"
    with pytest.raises(CheckpointError, match=says):
        script.convert(folder, "bert_model.ckpt", tmp_path / "new", True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


@pytest.mark.parametrize(
    ("name", "hidden", "pieces"),
    [
        ("bert-base-uncased", 768, 30522),
        ("bert-base-cased", 768, 28996),
        ("bert-large-uncased", 1024, 30522),
        ("bert-large-cased", 1024, 28996),
        ("bert-base-multilingual-cased", 768, 119547),
        ("bert-base-chinese", 768, 21128),
    ],
)
def test_configs_that_google_released(
    shared: Callable[[str], Path], name: str, hidden: int, pieces: int
) -> None:
    path = shared(f"google_bert_config/{name}.bert_config.json")
    config = BertConfig.from_dict(json.loads(path.read_text()))
    assert (config.hidden_size, config.vocab_size) == (hidden, pieces)
    assert config.layer_norm_eps == 1e-12

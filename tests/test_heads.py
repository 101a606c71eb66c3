import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ODD, PIECES, random_batch, random_bert_with
from safetensors.torch import load_file, save_file
from torch import Tensor

from minibert.config import CheckpointError
from minibert.head_config import HEADS, PROBLEM_TYPES, HeadConfig
from minibert.heads import BertWithHead, PretrainingHead, PretrainingOutput, make_head
from minibert.loading import load
from minibert.model import BertModel, BertOutput
from minibert.saving import save

LABELS = ("a", "b", "c", "d")
CASES = [
    *[
        (name, LABELS if name.endswith("classification") else (), PROBLEM_TYPES[0])
        for name in HEADS
    ],
    ("sequence-classification", LABELS, PROBLEM_TYPES[1]),
    ("sequence-classification", LABELS, PROBLEM_TYPES[2]),
    ("sequence-classification", ("score",), PROBLEM_TYPES[2]),
]
IDS = [f"{name} {problem} {len(labels)}" for name, labels, problem in CASES]

# Measured: 0 in both, on logits up to 22, since both run the same operations. Another machine may
# choose another order of sums.
BOUNDS = {torch.float32: 1e-5, torch.float64: 1e-13}

Case = tuple[str, tuple[str, ...], str]


def labels_for(case: Case, ids: Tensor, dtype: torch.dtype) -> Tensor | PretrainingOutput:
    """What a training set would say; -100, where it says nothing, among it."""
    name, labels, problem = case
    batch, tokens = ids.shape
    draw = torch.Generator().manual_seed(5)
    pieces = torch.randint(len(PIECES), ids.shape, generator=draw)
    pieces[torch.rand(ids.shape, generator=draw) < 0.5] = -100
    follows = torch.randint(2, (batch,), generator=draw)
    if problem != PROBLEM_TYPES[0]:
        numbers = torch.randn(batch, len(labels), generator=draw, dtype=dtype)
        if problem == PROBLEM_TYPES[1]:
            return (numbers > 0).to(dtype)
        return numbers if len(labels) > 1 else numbers[:, 0]
    tagged = torch.randint(4, ids.shape, generator=draw)
    tagged[torch.rand(ids.shape, generator=draw) < 0.3] = -100
    expected: dict[str, Tensor | PretrainingOutput] = {
        "masked-lm": pieces,
        "next-sentence": follows,
        "pretraining": PretrainingOutput(pieces, follows),
        "sequence-classification": torch.randint(4, (batch,), generator=draw),
        "token-classification": tagged,
        # One beyond the end, which does not count; transformers does the same.
        "question-answering": torch.tensor([[1, 3], [0, 0], [2, tokens + 5], [4, 4]]),
        "multiple-choice": torch.randint(2, (batch // 2,), generator=draw),
    }
    return expected[name]


def their_output(
    theirs: torch.nn.Module,
    name: str,
    batch: tuple[Tensor, ...],
    labels: Tensor | PretrainingOutput,
) -> tuple[tuple[Tensor, ...], Tensor]:
    """transformers' logits, in minibert's shapes, and its loss."""
    ids, segments, mask = batch
    known = {"input_ids": ids, "token_type_ids": segments, "attention_mask": mask}
    if isinstance(labels, PretrainingOutput):
        said = {"labels": labels.prediction, "next_sentence_label": labels.seq_relationship}
    elif name == "question-answering":
        said = {"start_positions": labels[:, 0].clone(), "end_positions": labels[:, 1].clone()}
    else:
        said = {"labels": labels}
    if name == "multiple-choice":
        known = {key: value.view(-1, 2, value.shape[1]) for key, value in known.items()}
    with torch.no_grad():
        output = theirs(**known, **said)
    if name == "pretraining":
        return (output.prediction_logits, output.seq_relationship_logits), output.loss
    if name == "question-answering":
        return (torch.stack([output.start_logits, output.end_logits], -1),), output.loss
    logits = output.logits.view(-1, 1) if name == "multiple-choice" else output.logits
    return (logits,), output.loss


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_logits_and_losses_are_those_of_transformers(
    tmp_path: Path, case: Case, dtype: torch.dtype
) -> None:
    """Through files, so that saving, the names of transformers and loading are proved, too."""
    transformers = pytest.importorskip("transformers")
    bert = random_bert_with(*case, dtype=dtype)
    save(bert, tmp_path / "model")
    loaded = load(tmp_path / "model", head="auto", dtype=dtype)
    theirs = getattr(transformers, HEADS[case[0]]).from_pretrained(tmp_path / "model", dtype=dtype)
    batch = random_batch(ODD, 4, 11)
    labels = labels_for(case, batch[0], dtype)
    expected, expected_loss = their_output(theirs.eval(), case[0], batch, labels)
    assert loaded.head is not None
    with torch.no_grad():
        logits = BertWithHead(loaded.model, loaded.head)(*batch)
        loss = loaded.head.loss(logits, labels)
    for ours, their in zip(
        logits if case[0] == "pretraining" else (logits,), expected, strict=True
    ):
        # Real positions; a padded one means nothing.
        real = batch[2].bool() if ours.dim() == 3 else slice(None)
        assert ours[real].std() > 0.1
        assert (ours - their)[real].abs().max() <= BOUNDS[dtype]
    assert abs(loss - expected_loss) <= BOUNDS[dtype]


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_load_of_save_is_the_same_bit_for_bit(tmp_path: Path, case: Case) -> None:
    bert = random_bert_with(*case)
    save(bert, tmp_path / "model")
    for asked in ("auto", case[0]):
        loaded = load(tmp_path / "model", head=asked)
        assert loaded.head is not None
        assert bert.head is not None
        assert loaded.head.config == bert.head.config
        assert not loaded.head.training
        for mine, other in ((bert.model, loaded.model), (bert.head, loaded.head)):
            state, loaded_state = mine.state_dict(), other.state_dict()
            assert state.keys() == loaded_state.keys()
            assert all(torch.equal(state[key], loaded_state[key]) for key in state)


def with_tensors(
    folder: Path,
    change: Callable[[dict[str, Tensor]], None],
    config: dict[str, object] | None = None,
) -> Path:
    """The same model with other tensors in its file, or keys in config.json."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    if config is not None:
        values = json.loads((folder / "config.json").read_text()) | config
        (folder / "config.json").write_text(json.dumps(values))
    return folder


@pytest.fixture
def pretraining(tmp_path: Path) -> Path:
    save(random_bert_with("pretraining"), tmp_path / "pretraining")
    return tmp_path / "pretraining"


def test_one_file_gives_each_head_that_it_has(
    pretraining: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = load(pretraining, head="pretraining").head
    assert isinstance(whole, PretrainingHead)
    for name, part in (("masked-lm", whole.masked_lm), ("next-sentence", whole.next_sentence)):
        head = load(pretraining, head=name).head
        assert head is not None
        assert all(torch.equal(head.state_dict()[k], t) for k, t in part.state_dict().items())
    with caplog.at_level(logging.INFO):
        assert load(pretraining).head is None
        assert "left out the heads: 7 tensors: cls.predictions.bias, " in caplog.text
        for name in ("token-classification", "question-answering"):
            with pytest.raises(CheckpointError, match=f"has no {name} head: load another, or give"):
                load(pretraining, head=name)


def test_names_of_old_checkpoints(pretraining: Path) -> None:
    expected = load(pretraining, head="auto").head

    def rename(tensors: dict[str, Tensor]) -> None:
        for new, old in (("weight", "gamma"), ("bias", "beta")):
            name = "cls.predictions.transform.LayerNorm."
            tensors[name + old] = tensors.pop(name + new)
        tensors["cls.predictions.decoder.bias"] = tensors.pop("cls.predictions.bias")
        word = tensors["bert.embeddings.word_embeddings.weight"]
        tensors["cls.predictions.decoder.weight"] = word.clone()

    head = load(with_tensors(pretraining, rename), head="auto").head
    assert head is not None
    assert expected is not None
    assert all(torch.equal(t, head.state_dict()[k]) for k, t in expected.state_dict().items())


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t: t.pop("cls.predictions.bias"), "lacks 1 tensor: cls.predictions.bias"),
        (
            lambda t: t.update({"cls.predictions.decoder.bias": t["cls.predictions.bias"] + 1}),
            "cls.predictions.decoder.bias is not cls.predictions.bias, though config.json ties",
        ),
        (
            lambda t: t.update({"cls.predictions.decoder.weight": torch.zeros(len(PIECES), 33)}),
            "decoder.weight is not bert.embeddings.word_embeddings.weight, though config.json",
        ),
        (
            lambda t: t.update({"cls.predictions.decoder.weight": torch.zeros(3, 33)}),
            "decoder.weight is not bert.embeddings.word_embeddings.weight, though config.json",
        ),
        (
            lambda t: t.update({"cls.seq_relationship.weight": torch.zeros(3, 33)}),
            r"misshapen 1 tensor: cls.seq_relationship.weight F32 \[3, 33\] for \[2, 33\]",
        ),
        (
            lambda t: t.update({"cls.seq_relationship.bias": torch.tensor([0, float("nan")])}),
            "NaN or infinite in this dtype, in 1 tensor: cls.seq_relationship.bias",
        ),
        (
            lambda t: [t.pop(f"bert.pooler.dense.{part}") for part in ("weight", "bias")],
            "has no pooler, which the head pretraining reads",
        ),
    ],
)
def test_a_head_that_does_not_fit_is_an_error(
    pretraining: Path, change: Callable[[dict[str, Tensor]], None], expected: str
) -> None:
    with pytest.raises(CheckpointError, match=expected):
        load(with_tensors(pretraining, change), head="auto")


def test_a_decoder_of_its_own(tmp_path: Path, pretraining: Path) -> None:
    """With tie_word_embeddings false, as transformers reads it."""
    transformers = pytest.importorskip("transformers")
    own = torch.randn(len(PIECES), 33, generator=torch.Generator().manual_seed(1))
    with_tensors(
        pretraining,
        lambda t: t.update(
            {"cls.predictions.decoder.weight": own, "cls.predictions.decoder.bias": own[:, 0] * 1}
        ),
        {"tie_word_embeddings": False},
    )
    bert = load(pretraining, head="masked-lm")
    assert bert.head is not None
    save(bert, tmp_path / "again")
    for folder in (pretraining, tmp_path / "again"):
        again = load(folder, head="masked-lm")
        assert again.head is not None
        assert torch.equal(again.head.state_dict()["decoder.weight"], own)
        assert torch.equal(again.head.state_dict()["bias"], own[:, 0])
    theirs = transformers.BertForMaskedLM.from_pretrained(tmp_path / "again").eval()
    batch = random_batch(ODD, 2, 9)
    with torch.no_grad():
        ours = BertWithHead(bert.model, bert.head)(*batch)
        expected = theirs(batch[0], token_type_ids=batch[1], attention_mask=batch[2]).logits
    assert (ours - expected)[batch[2].bool()].abs().max() <= BOUNDS[torch.float32]


def test_auto_is_what_config_json_names(folder: Path, tmp_path: Path) -> None:
    assert load(folder, head="auto").head is None  # it names nothing
    shutil.copytree(folder, tmp_path / "other")
    with_tensors(tmp_path / "other", lambda _: None, {"architectures": ["BertForKaraoke"]})
    with pytest.raises(CheckpointError, match="BertForKaraoke.*, a head that minibert does not"):
        load(tmp_path / "other", head="auto")
    with pytest.raises(ValueError, match="head must be None, 'auto' or one of masked-lm, .*'mlm'"):
        load(folder, head="mlm")
    save(random_bert_with("token-classification", LABELS), tmp_path / "tags")
    with_tensors(tmp_path / "tags", lambda _: None, {"id2label": {"7": "x"}})
    with pytest.raises(CheckpointError, match=r"config.json: id2label must name the classes"):
        load(tmp_path / "tags", head="auto")


def test_the_decoder_stays_tied() -> None:
    """Through loading on meta, training steps and a change of dtype."""
    bert = random_bert_with("masked-lm")
    assert bert.head is not None
    whole = BertWithHead(bert.model, bert.head).double()
    word, decoder = bert.model.embeddings.word, bert.head.get_submodule("decoder")
    assert word.weight is decoder.weight
    names = [name for name, _ in whole.named_parameters()]
    assert len(names) == len(set(names))
    assert "head.decoder.weight" not in names
    optimizer = torch.optim.SGD(whole.parameters(), lr=0.1)
    ids = torch.tensor([[2, 5, 6, 3]])
    whole.head.loss(whole(ids), ids).backward()  # type: ignore[arg-type]
    before = word.weight.detach().clone()
    optimizer.step()
    assert word.weight is decoder.weight
    assert not torch.equal(word.weight[7], before[7])  # a piece that is not in the text


def test_chosen_positions_give_the_same_as_all() -> None:
    bert = random_bert_with("masked-lm")
    assert bert.head is not None
    with torch.no_grad():
        output = bert.model(torch.tensor([[2, 5, 6, 7, 3]]))
        logits = bert.head(output)
        chosen = bert.head(BertOutput(output.last_hidden_state[0, [1, 3]], output.pooler_output))
    assert (logits[0, [1, 3]] - chosen).abs().max() <= BOUNDS[torch.float32]


def test_a_new_head_is_drawn_as_bert_was() -> None:
    """From a normal distribution of 0.02, cut at twice that; biases are 0."""
    config = replace(ODD, hidden_size=300)
    head = make_head(BertModel(config), HeadConfig("masked-lm"))
    weight, std = head.dense.weight.detach(), config.initializer_range
    assert 1.9 * std < float(weight.abs().max()) <= 2 * std
    assert float(weight.std()) == pytest.approx(0.88 * std, rel=0.02)  # as the tails are cut
    assert not head.dense.bias.any()


@pytest.mark.parametrize("name", HEADS)
def test_which_heads_have_dropout(name: str) -> None:
    """Not those of pre-training and of questions, in Google's code and in transformers."""
    bert = random_bert_with(name, LABELS if name.endswith("classification") else ())
    drops = name.endswith("classification") or name == "multiple-choice"
    vectors = torch.ones(4, 5, ODD.hidden_size)
    output = BertOutput(vectors, vectors[:, 0])
    assert bert.head is not None
    first, second = (bert.head.train()(output) for _ in range(2))
    pairs = zip(first, second, strict=True) if name == "pretraining" else [(first, second)]
    assert all(torch.equal(a, b) != drops for a, b in pairs)

import dataclasses
import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ODD, PIECES, random_model, run_python

from minibert.bert import Bert
from minibert.config import CheckpointError
from minibert.loading import load
from minibert.model import BertModel
from minibert.saving import save
from minibert.source import Pooling, Source
from minibert.tokenizer import SPECIAL_TOKENS, WordPieceTokenizer


def same(one: Bert, other: Bert) -> bool:
    """Bit for bit: config, every tensor, and all that a tokenizer is made of."""
    mine, theirs = one.model.state_dict(), other.model.state_dict()
    settings = ("lowercase", "strip_accents", "tokenize_chinese_chars")
    return (
        one.config == other.config
        and mine.keys() == theirs.keys()
        and all(torch.equal(mine[name], theirs[name]) for name in mine)
        and all(mine[name].dtype == theirs[name].dtype for name in mine)
        and one.tokenizer.vocabulary == other.tokenizer.vocabulary
        and one.tokenizer.special_ids == other.tokenizer.special_ids
        and one.tokenizer.padding_side == other.tokenizer.padding_side
        and one.tokenizer.truncation_side == other.tokenizer.truncation_side
        and all(
            getattr(one.tokenizer.normalizer, name) == getattr(other.tokenizer.normalizer, name)
            for name in settings
        )
    )


def random_bert(has_pooler: bool = True, **settings: object) -> Bert:
    pieces = ["[unused1]", *PIECES[5:], *SPECIAL_TOKENS, "[E1]", "A", "##\u2028", "é", ""]
    config = dataclasses.replace(ODD, vocab_size=len(pieces), pad_token_id=None)
    model = random_model(config)
    if not has_pooler:
        bare = BertModel(config, has_pooler=False)
        bare.load_state_dict({k: v for k, v in model.state_dict().items() if "pooler" not in k})
        model = bare.eval()
    tokenizer = WordPieceTokenizer(pieces, **{"lowercase": False, **settings})  # type: ignore[arg-type]
    return Bert(config, tokenizer, model)


@pytest.mark.parametrize(
    "bert",
    [
        random_bert(),
        random_bert(has_pooler=False, lowercase=True),
        random_bert(strip_accents=True, tokenize_chinese_chars=False, added_tokens=["[E1]"]),
    ],
    ids=["cased", "no pooler", "settings"],
)
def test_load_of_save_is_the_same_bit_for_bit(tmp_path: Path, bert: Bert) -> None:
    bert.tokenizer.padding_side = "left"
    save(bert, tmp_path / "saved")
    loaded = load(tmp_path / "saved")
    # A piece of white space alone is read as nothing, by all readers of vocab.txt.
    assert same(loaded, Bert(bert.config, bert.tokenizer, bert.model))
    save(loaded, tmp_path / "saved")
    assert same(load(tmp_path / "saved"), bert)
    assert os.listdir(tmp_path) == ["saved"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_saving_another_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    bert = random_bert()
    bert.model.to(dtype)
    save(bert, tmp_path / "saved")
    assert same(load(tmp_path / "saved", dtype=dtype), bert)


@pytest.mark.parametrize("files", [None, ["vocab.txt"], ["tokenizer.json"]])
def test_transformers_reads_what_was_saved(tmp_path: Path, files: list[str] | None) -> None:
    """The same tensors, outputs and ids; from either file of the tokenizer alone, too."""
    transformers = pytest.importorskip("transformers")
    bert = random_bert(added_tokens=["[E1]"])
    save(bert, tmp_path / "saved")
    for name in {"vocab.txt", "tokenizer.json"} - set(files or ["vocab.txt", "tokenizer.json"]):
        (tmp_path / "saved" / name).unlink()
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "saved")
    assert type(theirs).__name__ == "BertModel"
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert tokenizer.model_max_length == 17
    texts = [("i am", "the walrus."), ("a [MASK] b[E1]Am é", "[SEP]中"), ("A", "")]
    for pair in texts:
        ours = bert.tokenizer.encode(*pair)
        expected = tokenizer(*pair)
        assert ours.input_ids == expected["input_ids"]
        assert ours.token_type_ids == expected["token_type_ids"]
        with torch.no_grad():
            inputs = (torch.tensor([ours.input_ids]), torch.tensor([ours.token_type_ids]))
            mine = bert.model(*inputs)
            other = theirs(inputs[0], token_type_ids=inputs[1])
        torch.testing.assert_close(mine.last_hidden_state, other.last_hidden_state)
        torch.testing.assert_close(mine.pooler_output, other.pooler_output)


def test_other_classes_of_transformers_are_told_the_special_tokens(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """BertTokenizer knows them; others only what tokenizer_config.json says."""
    transformers = pytest.importorskip("transformers")
    save(random_bert(added_tokens=["[E1]"]), tmp_path / "saved")
    for kind in (transformers.PreTrainedTokenizerFast, transformers.AutoTokenizer):
        theirs = kind.from_pretrained(tmp_path / "saved")
        names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
        assert tuple(getattr(theirs, name) for name in names) == SPECIAL_TOKENS
        assert theirs.convert_tokens_to_ids("[E1]") == theirs("[E1]").input_ids[1]
    assert capfd.readouterr().out == ""  # "Ignored unknown kwarg option" of tokenizers


def for_sentences(pooling: Pooling) -> Bert:
    return dataclasses.replace(random_bert(), source=Source("", "", {}, {}, pooling))


@pytest.mark.parametrize(
    "pooling",
    [Pooling("cls", True), Pooling("mean", False), Pooling("max", True)],
    ids=lambda pooling: f"{pooling.mode} {pooling.normalize}",
)
def test_vectors_of_sentences_are_the_same_after_saving(tmp_path: Path, pooling: Pooling) -> None:
    bert = for_sentences(pooling)
    save(bert, tmp_path / "saved")
    loaded = load(tmp_path / "saved")
    assert loaded.source is not None
    assert loaded.source.pooling == pooling
    texts = ["i am", "the walrus."]
    ours = np.stack(loaded.vectors(texts, unit="sentence").vectors)
    for mode in ("cls", "mean", "max"):
        asked = bert.vectors(texts, unit="sentence", pooling=mode, normalize=pooling.normalize)
        assert (np.stack(asked.vectors) == ours).all() == (mode == pooling.mode)
    sentence_transformers = pytest.importorskip("sentence_transformers")
    theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    np.testing.assert_allclose(theirs.encode(texts), ours, atol=2e-6)


@pytest.mark.parametrize("mode", ["mean_sqrt_len", "weightedmean", "lasttoken"])
def test_a_pooling_that_minibert_lacks_is_kept(tmp_path: Path, mode: str) -> None:
    save(for_sentences(Pooling(mode, False)), tmp_path / "saved")
    source = load(tmp_path / "saved").source
    assert source is not None
    assert source.pooling == Pooling(mode, False)


def test_saving_over_a_model_for_sentences_leaves_nothing_of_it(tmp_path: Path) -> None:
    save(for_sentences(Pooling("cls", True)), tmp_path / "saved")
    save(random_bert(), tmp_path / "saved")
    assert not {"modules.json", "1_Pooling"} & set(os.listdir(tmp_path / "saved"))


def test_saving_minilm(minilm: Bert, tmp_path: Path) -> None:
    save(minilm, tmp_path / "saved")
    assert same(load(tmp_path / "saved"), minilm)


@pytest.mark.parametrize("name", ["uncased", "cased", "multilingual-cased", "chinese"])
def test_saving_released_vocabularies(
    vocabulary: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    path = vocabulary(f"bert-base-{name}")
    tokenizer = WordPieceTokenizer.from_file(path, name == "uncased")
    config = dataclasses.replace(ODD, vocab_size=len(tokenizer), num_hidden_layers=1)
    bert = Bert(config, tokenizer, random_model(config))
    save(bert, tmp_path / "saved")
    assert same(load(tmp_path / "saved"), bert)


def test_what_is_saved_has_the_usual_mode(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        save(random_bert(), tmp_path / "saved")
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "saved").iterdir()}
    assert modes == {0o644}


def test_saving_where_something_is(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis").write_text("words")
    with pytest.raises(ValueError, match="also has thesis, which would be lost; take a new folder"):
        save(random_bert(), tmp_path / "notes")
    save(random_bert(), folder)  # of the same files, if fewer
    assert load(folder).config.pad_token_id is None


def test_saving_to_a_full_disk_leaves_the_old_model(tmp_path: Path) -> None:
    bert = random_bert()
    save(bert, tmp_path / "saved")
    code = f"""
import resource, minibert
bert = minibert.load({str(tmp_path / "saved")!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
try:
    minibert.save(bert, {str(tmp_path / "saved")!r})
except minibert.CheckpointError as error:
    print(error)
"""
    result = run_python(code)
    assert result.stdout.startswith(f"cannot write {tmp_path / 'saved'}: "), result
    assert "File too large" in result.stdout
    assert same(load(tmp_path / "saved"), bert)
    assert os.listdir(tmp_path) == ["saved"]


def test_another_architecture_is_named_before_its_tokenizer_is_missed(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "roberta"}')
    (folder / "vocab.txt").unlink()
    with pytest.raises(CheckpointError, match="model_type 'roberta' is not supported"):
        load(folder)


def test_where_models_of_hand_come_from() -> None:
    assert random_bert().source is None

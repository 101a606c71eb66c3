import dataclasses
import json
from pathlib import Path

import pytest
import torch
from conftest import ODD, PIECES, random_model

from minibert.bert import Bert
from minibert.config import CheckpointError
from minibert.head_config import HEADS
from minibert.loading import load, new_head
from minibert.model import BertModel
from minibert.tokenizer import WordPieceTokenizer


def test_a_vocabulary_of_another_model(folder: Path) -> None:
    (folder / "vocab.txt").write_text("\n".join([*PIECES, "more"]), "utf-8")
    with pytest.raises(CheckpointError, match="has 15 pieces in vocab.txt and 14 rows in its word"):
        load(folder)


def test_a_word_embedding_with_rows_to_spare(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "vocab.txt").write_text("\n".join(PIECES[:-1]), "utf-8")
    assert len(load(folder).tokenizer) == 13
    (record,) = caplog.records
    assert "13 pieces in vocab.txt and 14 rows in its word embedding: right if" in record.message


def test_code_of_its_own_is_named_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = folder / "config.json"
    values = {**json.loads(path.read_text()), "auto_map": {"AutoModel": "evil.Model"}}
    path.write_text(json.dumps(values))
    load(folder)
    (record,) = caplog.records
    assert "asks for code of its own (auto_map)" in record.message


def test_a_new_head_starts_as_bert_did() -> None:
    bert = Bert(ODD, WordPieceTokenizer(PIECES, lowercase=True), random_model(ODD))
    before = {name: tensor.clone() for name, tensor in bert.model.state_dict().items()}
    for name in HEADS:
        labels = [str(n) for n in range(200)] if name.endswith("classification") else []
        head = new_head(bert, name, labels).head
        assert head is not None
        assert not head.training
        assert head.config.dropout == 0.1
        for key, tensor in head.state_dict().items():
            if "decoder" in key:
                assert tensor is not None
                assert head.get_parameter(key) is bert.model.embeddings.word.weight
            elif key.endswith("bias"):
                assert not tensor.any()
            elif "norm" in key:
                assert (tensor == 1).all()
            else:
                assert tensor.abs().max() <= 0.04
        if labels:  # 6,600 numbers of a normal distribution, cut off at two deviations
            assert abs(head.state_dict()["linear.weight"].std() / (0.8796 * 0.02) - 1) < 0.04
    after = bert.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert new_head(dataclasses.replace(bert, model=bert.model.train()), "masked-lm").head.training  # type: ignore[union-attr]


def test_a_new_head_that_cannot_be_is_refused() -> None:
    model = BertModel(ODD, has_pooler=False)
    bert = Bert(ODD, WordPieceTokenizer(PIECES, lowercase=True), model)
    with pytest.raises(ValueError, match="the head next-sentence reads the pooler's vector; the"):
        new_head(bert, "next-sentence")
    with pytest.raises(ValueError, match="there is no head 'bert'"):
        new_head(bert, "bert")
    with pytest.raises(ValueError, match="problem_type of token-classification must be one of"):
        new_head(bert, "token-classification", ["a"], "regression")
    assert new_head(bert, "token-classification", ["a"]).head is not None

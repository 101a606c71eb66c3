import pytest
import torch
from conftest import ODD, random_bert_with

from minibert.config import BertConfig
from minibert.glossary import HEAD_NAMES, NAMES, checkpoint_names, head_names, modern_name
from minibert.head_config import HEADS, HeadConfig
from minibert.model import BertModel


def labels(name: str) -> tuple[str, ...]:
    return ("a", "b", "c") if name.endswith("classification") else ()


def test_a_row_per_tensor() -> None:
    with torch.device("meta"):
        for has_pooler in (True, False):
            model = BertModel(ODD, has_pooler)
            assert checkpoint_names(ODD, has_pooler).keys() == model.state_dict().keys()
    assert len(set(NAMES.values())) == len(NAMES)


@pytest.mark.parametrize("name", HEADS)
def test_a_row_per_tensor_of_a_head(name: str) -> None:
    head = random_bert_with(name, labels(name)).head
    assert head is not None
    assert head_names(head.config).keys() == head.state_dict().keys()


@pytest.mark.parametrize("name", HEADS)
def test_the_names_are_those_of_transformers(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(num_hidden_layers=2, hidden_size=12, num_attention_heads=1)
    theirs = set(getattr(transformers, HEADS[name])(config).state_dict())
    ours = {f"bert.{known}" for known in checkpoint_names(BertConfig(num_hidden_layers=2)).values()}
    ours |= set(HEAD_NAMES[name].values())
    # The pooler is there only for heads that read it; the decoder's bias is named twice.
    assert {known for known in ours if "pooler" not in known} == {
        known
        for known in theirs
        if "pooler" not in known and known != "cls.predictions.decoder.bias"
    }


def test_a_tied_decoder_is_the_word_embedding() -> None:
    tied, untied = (HeadConfig("pretraining", tied=tied) for tied in (True, False))
    own = "masked_lm.decoder.weight"
    assert head_names(tied)[own] == "embeddings.word_embeddings.weight"
    assert head_names(untied)[own] == "cls.predictions.decoder.weight"
    assert head_names(None) == {}


def test_names_of_old_checkpoints() -> None:
    old = "bert.encoder.layer.3.output.LayerNorm.gamma"
    assert modern_name(old) == "encoder.layer.3.output.LayerNorm.weight"
    old = "cls.predictions.transform.LayerNorm.beta"
    assert modern_name(old) == "cls.predictions.transform.LayerNorm.bias"

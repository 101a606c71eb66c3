import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from minibert.config import HIDDEN_ACTS, BertConfig
from minibert.encoder import FeedForward


def test_the_defaults_are_bert_base_uncased(shared: Callable[[str], Path]) -> None:
    published = json.loads(shared("hub/bert-base-uncased/config.json").read_text())
    assert BertConfig.from_dict(published) == BertConfig()


def test_missing_keys_take_their_defaults(shared: Callable[[str], Path]) -> None:
    folder = shared("google_bert_config")
    sizes = {
        path.name.removesuffix(".bert_config.json"): BertConfig.from_dict(
            json.loads(path.read_text())
        )
        for path in folder.iterdir()
    }
    assert sizes["bert-base-uncased"] == BertConfig()
    assert sizes["bert-large-cased"].num_hidden_layers == 24
    assert sizes["bert-base-chinese"].vocab_size == 21128
    assert all(config.layer_norm_eps == 1e-12 for config in sizes.values())


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("hidden_size", 770, "hidden_size 770 is not a multiple of num_attention_heads 12"),
        ("hidden_size", "768", "hidden_size must be an int from 1 to 10000000, got '768'"),
        ("hidden_size", 768.0, "hidden_size must be an int"),
        ("num_hidden_layers", 0, "num_hidden_layers must be an int"),
        ("num_hidden_layers", True, "num_hidden_layers must be an int"),
        ("num_attention_heads", -4, "num_attention_heads must be an int"),
        ("vocab_size", None, "vocab_size must be an int"),
        ("hidden_size", 10**12, "hidden_size must be an int from 1 to"),
        ("add_cross_attention", True, "add_cross_attention True is not supported"),
        ("pruned_heads", {"0": [1]}, "pruned_heads {'0': .1.} is not supported"),
        ("quantization_config", {"bits": 4}, "quantization_config .* is not supported"),
        ("hidden_act", "GELU", "hidden_act must be one of gelu, gelu_new, .*, got 'GELU'"),
        ("hidden_act", ["gelu"], "hidden_act must be one of"),
        ("layer_norm_eps", 0, "layer_norm_eps must be a number more than 0 and less than 1"),
        ("layer_norm_eps", float("nan"), "layer_norm_eps must be a number"),
        ("layer_norm_eps", "1e-12", "layer_norm_eps must be a number"),
        ("hidden_dropout_prob", 1.5, "hidden_dropout_prob must be a number at least 0"),
        ("attention_probs_dropout_prob", -0.1, "attention_probs_dropout_prob must be a number"),
        ("pad_token_id", 30522, "pad_token_id must be an id below 30522"),
        ("pad_token_id", -1, "pad_token_id must be an id"),
        ("model_type", "roberta", "model_type 'roberta' is not supported, only 'bert' is"),
        ("position_embedding_type", "relative_key", "position_embedding_type 'relative_key' is"),
        ("is_decoder", True, "is_decoder True is not supported, only False is"),
    ],
)
def test_bad_values_are_refused_by_name(key: str, value: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        BertConfig.from_dict({key: value})


@pytest.mark.parametrize(
    "key", ["vocab_size", "layer_norm_eps", "hidden_act", "pad_token_id", "pruned_heads"]
)
@pytest.mark.parametrize(
    "value",
    ["x" * 10**5, [1] * 10**5, {"a\nb": "c" * 10**5}, 10**4000],
    ids=["text", "list", "object", "number"],
)
def test_a_message_is_a_line_whatever_the_value(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=key) as raised:
        BertConfig.from_dict({key: value})
    assert len(str(raised.value)) < 200
    assert "\n" not in str(raised.value)


def test_a_config_must_be_an_object() -> None:
    with pytest.raises(ValueError, match="expected a JSON object, got list"):
        BertConfig.from_dict([])  # type: ignore[arg-type]


def test_legal_oddities_are_accepted() -> None:
    BertConfig.from_dict({"pad_token_id": None, "type_vocab_size": 3, "is_decoder": None})
    BertConfig.from_dict({"hidden_dropout_prob": 0, "use_cache": True, "pruned_heads": {}})


def test_every_activation_is_implemented() -> None:
    for hidden_act in HIDDEN_ACTS:
        FeedForward(BertConfig(hidden_size=12, intermediate_size=12, hidden_act=hidden_act))


def test_a_config_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        BertConfig().hidden_size = 1  # type: ignore[misc]

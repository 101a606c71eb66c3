import copy
from pathlib import Path

import pytest
import torch
from conftest import errors_by_state
from test_model import MUTATIONS

from minibert.bert import Bert
from minibert.edits import edit, scale_by
from minibert.hooks import capture
from minibert.loading import load

TEXTS = [
    ("I am the walrus.", None),
    ("What are the elements in a BERT word embedding?", "One vector per token, and per layer."),
    ("The bank raised the interest rate.", "She sat on the bank of the river, and read."),
]


@pytest.fixture
def batch(minilm: Bert) -> tuple[torch.Tensor, ...]:
    encodings = [minilm.tokenizer.encode(*pair) for pair in TEXTS]
    longest = max(len(encoding.input_ids) for encoding in encodings)

    def padded(rows: list[list[int]]) -> torch.Tensor:
        return torch.tensor([row + [0] * (longest - len(row)) for row in rows])

    return (
        padded([encoding.input_ids for encoding in encodings]),
        padded([encoding.token_type_ids for encoding in encodings]),
        padded([[1] * len(encoding.input_ids) for encoding in encodings]),
    )


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=["32", "64"]
)
def test_minilm_equals_transformers_at_every_state(
    minilm_folder: Path,
    batch: tuple[torch.Tensor, ...],
    dtype: torch.dtype,
    tolerance: float,
    attention: str,
) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.BertModel.from_pretrained(minilm_folder, attn_implementation=attention)
    errors = errors_by_state(load("minilm", dtype=dtype).model, theirs.to(dtype), batch)
    assert max(errors) < tolerance, errors


# minilm's states for "I am the walrus.", the first three numbers of [CLS] and of "##rus", as
# transformers 5.23.0 with torch 2.13.0 gave them in float64.
STORED = [
    ([-0.1765675, -0.0482364, 0.0376982], [-0.4054569, 0.9691056, 0.6540004]),
    ([-0.0021226, -0.0173336, -0.0159801], [-0.5079641, 0.6471381, 0.521096]),
    ([-0.0428587, 0.0121688, -0.0127395], [-0.3233189, 0.6592199, 0.785039]),
    ([-0.0188367, -0.0121302, -0.0138216], [-0.0519701, 0.8024152, 0.4086727]),
    ([-0.0103189, 0.0162424, 0.0027058], [0.1295532, 0.9787256, 0.2033346]),
    ([-0.0339516, -0.0033761, -0.0010089], [0.2652564, 0.6817008, -0.179439]),
    ([0.0443995, 0.1566445, 0.1112182], [0.2771405, 0.6541891, 0.0837365]),
]


def test_minilm_equals_stored_numbers(minilm: Bert) -> None:
    encoding = minilm.tokenizer.encode("I am the walrus.")
    assert encoding.tokens == ["[CLS]", "i", "am", "the", "wal", "##rus", ".", "[SEP]"]
    with torch.no_grad(), capture(minilm.model, "hidden_states") as seen:
        minilm.model(torch.tensor([encoding.input_ids]))
    for state, (first, piece) in zip(seen.hidden_states, STORED, strict=True):
        torch.testing.assert_close(state[0, 0, :3], torch.tensor(first), rtol=0, atol=1e-5)
        torch.testing.assert_close(state[0, 5, :3], torch.tensor(piece), rtol=0, atol=1e-5)


def test_minilm_reproduces_published_similarities(minilm: Bert) -> None:
    # sentence-transformers' quickstart prints these cosines, of the mean over all tokens.
    sentences = [
        "The weather is lovely today.",
        "It's so sunny outside!",
        "He drove to the stadium.",
    ]
    with torch.no_grad():
        means = [
            minilm.model(torch.tensor([encoding.input_ids])).last_hidden_state[0].mean(dim=0)
            for encoding in minilm.tokenizer.encode_batch(sentences)
        ]
    units = torch.nn.functional.normalize(torch.stack(means))
    published = torch.tensor([[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]])
    torch.testing.assert_close(units @ units.T, published, rtol=0, atol=6e-5)


@pytest.mark.parametrize(
    "name", ["tanh GELU", "eps 1e-5", "segments off by one", "layers swapped", "pre-LN"]
)
def test_float32_shows_mistakes_on_real_weights(
    minilm: Bert, batch: tuple[torch.Tensor, ...], name: str
) -> None:
    mutant = copy.deepcopy(minilm.model)
    MUTATIONS[name](mutant)
    real = batch[2].bool()
    with torch.no_grad():
        right = minilm.model(*batch).last_hidden_state[real]
        error = (mutant(*batch).last_hidden_state[real] - right).abs().max().item()
        without_mask = minilm.model(*batch[:2]).last_hidden_state[real]
    assert error > 10 * 1e-5
    assert (without_mask - right).abs().max() > 10 * 1e-5


def test_one_word_two_vectors(minilm: Bert) -> None:
    """The point of BERT: a word has another vector in another sentence, and one before layer 1."""
    vectors = []
    for text in ("I ate an apple.", "I bought an apple laptop."):
        encoding = minilm.tokenizer.encode(text)
        position = encoding.tokens.index("apple")
        with torch.no_grad(), capture(minilm.model, "hidden_states") as seen:
            minilm.model(torch.tensor([encoding.input_ids]))
        vectors.append(torch.stack([state[0, position] for state in seen.hidden_states]))
    similarity = torch.nn.functional.cosine_similarity(*vectors)
    assert similarity[0] > 0.9999  # the same piece at the same position
    assert similarity[-1] < 0.8


def test_states_of_a_text_a_pair_and_a_list(minilm: Bert) -> None:
    text, pair = "I am the walrus.", ("The walrus", "It sings.")
    one = minilm.states(text)
    assert one.tokens == ["[CLS]", "i", "am", "the", "wal", "##rus", ".", "[SEP]"]
    assert [text[start:end] for start, end in one.offsets[4:6]] == ["wal", "rus"]
    assert one.word_ids == [None, 0, 1, 2, 3, 3, 4, None]
    assert one.hidden_states.shape == (7, 8, 384)
    assert one.attentions is None
    two = minilm.states(pair, attentions=True)
    assert two.encoding == minilm.tokenizer.encode(*pair)
    assert two.attentions is not None
    assert two.attentions.shape == (6, 12, len(two.tokens), len(two.tokens))
    many = minilm.states([text, pair])
    assert [states.tokens for states in many] == [one.tokens, two.tokens]
    assert torch.equal(many[0].hidden_states, one.hidden_states)
    assert minilm.states([]) == []
    assert len(minilm.states(text, max_length=4).tokens) == 4


def test_states_are_those_of_transformers(minilm: Bert, minilm_folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.BertModel.from_pretrained(minilm_folder, attn_implementation="eager")
    tokenizer = transformers.BertTokenizer.from_pretrained(minilm_folder)
    states = minilm.states(TEXTS[2], attentions=True)
    with torch.no_grad():
        expected = theirs(
            **tokenizer(*TEXTS[2], return_tensors="pt"),
            output_hidden_states=True,
            output_attentions=True,
        )
    assert states.attentions is not None
    errors = [
        (states.hidden_states - torch.cat(expected.hidden_states)).abs().max().item(),
        (states.attentions - torch.cat(expected.attentions)).abs().max().item(),
    ]
    assert max(errors) < 1e-5, errors
    # What BertViz's head_view takes: one tensor a layer, each of a batch of one.
    for_bertviz = list(states.attentions[:, None])
    assert [layer.shape for layer in for_bertviz] == [their.shape for their in expected.attentions]


def test_states_see_edits(minilm: Bert) -> None:
    plain = minilm.states("I am")
    with edit(minilm.model, {"encoder.layers.2": scale_by(0.0)}):
        edited = minilm.states("I am")
    assert torch.equal(edited.hidden_states[:3], plain.hidden_states[:3])
    assert (edited.hidden_states[3] == 0).all()


def test_states_that_cannot_be_had(folder: Path) -> None:
    bert = load(folder)
    with pytest.raises(ValueError, match="texts must be a list of str or pairs, got int"):
        bert.states(5)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match=r"texts\[1\] must be a str or a pair of them, got None"):
        bert.states(["a", None])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="22 tokens are more than the 17 positions"):
        bert.states("a " * 20)
    bert.model.train()
    with pytest.raises(ValueError, match=r"training mode, .* call eval\(\)"):
        bert.states("a")

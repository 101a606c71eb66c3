# %% [markdown]
"""From a sentence to vectors, by hand: BERT in the order of its papers.

This file is read from top to bottom, and runs in two ways: as a script,

    python scripts/walkthrough.py

or cell by cell, as a notebook, wherever `# %%` is known (VS Code, PyCharm, Spyder; in Jupyter by
jupytext). It takes real weights and computes what BERT computes in plain torch: no layer and no
module, only `@`, `+`, `exp` and the like. After each step the result is held against minibert's,
and the walk stops where they differ. So what you read here is what BERT does.

The papers are [V17] "Attention Is All You Need" (arXiv 1706.03762), [D18] "BERT" (1810.04805),
[W16] WordPiece (1609.08144), [B16] LayerNorm (1607.06450) and [H16] GELU (1606.08415). Shapes are
written in the letters of minibert/config.py: B batch, T tokens, H width of a vector, A heads, D
width of a head, I inner width of the feed-forward layer, V pieces in the vocabulary, L layers.
"""

# %%
import math
import re
import unicodedata

import torch
from torch import Tensor

import minibert

MODEL = "minilm"  # or another uncased one, such as "google-bert/bert-base-uncased"
TEXT = "Björk sat on the bank of the river."

# In 64 bits rounding cannot hide a mistake. It was 7e-15 at most where this was written, and the
# smallest of the classic mistakes, a LayerNorm with eps 1e-5, moves the last state by 2e-3.
TOLERANCE = 1e-12

torch.set_grad_enabled(False)  # nothing is trained on this walk
bert = minibert.load(MODEL, dtype=torch.float64)
model, config = bert.model, bert.config
L, H, A = config.num_hidden_layers, config.hidden_size, config.num_attention_heads
D = H // A


def agree(what: str, by_hand: Tensor, theirs: Tensor) -> None:
    """Print the shape of a result, and how far it is from minibert's; stop if that is too far."""
    if by_hand.shape != theirs.shape:
        raise SystemExit(f"{what}: by hand {tuple(by_hand.shape)}, minibert {tuple(theirs.shape)}")
    gap = (by_hand - theirs).abs().max().item()
    print(f"    {what:34} {str(tuple(by_hand.shape)):18} as minibert, to {gap:.0e}")
    if not gap <= TOLERANCE:  # in this order a NaN stops the walk, too
        raise SystemExit(f"{what}: differs by {gap:.1e}, more than {TOLERANCE:.0e}")


def agree_exactly(what: str, by_hand: object, theirs: object) -> None:
    """Stop if two lists are not the same."""
    if by_hand != theirs:
        raise SystemExit(f"{what}: by hand {by_hand}, minibert {theirs}")
    print(f"    {what:34} {'':18} as minibert, exactly")


print(f"{MODEL}: L = {L} layers, H = {H}, A = {A} heads of D = {D}, V = {config.vocab_size} pieces")

# %% [markdown]
# ## 1. Text to pieces: [W16] section 4.1
#
# A model reads numbers, so a text is cut into *pieces* out of a fixed list, the vocabulary. First
# come the words: an uncased model drops accents and case, and a punctuation mark is a word of its
# own. (minibert knows all of Unicode here, `normalizer.py`; these three lines know Europe.)

# %%
decomposed = unicodedata.normalize("NFD", TEXT)  # "ö" becomes "o" and a mark
plain = "".join(c for c in decomposed if unicodedata.category(c) != "Mn").lower()
words = re.findall(r"\w+|[^\w\s]", plain)
print("\n1. words:", words)

# %% [markdown]
# Then each word is cut: the longest piece of the vocabulary that fits comes first, then the longest
# that fits what is left, marked by "##". This "greedy longest match" is in Google's code; the paper
# explains how the vocabulary is found, and leaves the cutting to the reader.

# %%
vocabulary = {piece: number for number, piece in enumerate(bert.tokenizer.vocabulary)}


def cut(word: str) -> list[str]:
    """A word to its pieces; one [UNK] if some part of it has no piece."""
    pieces: list[str] = []
    start = 0
    while start < len(word):
        prefix = "##" if start else ""
        ends = range(len(word), start, -1)
        end = next((end for end in ends if prefix + word[start:end] in vocabulary), None)
        if end is None:
            return ["[UNK]"]
        pieces.append(prefix + word[start:end])
        start = end
    return pieces


for word in words:
    print(f"    {word:8}", " ".join(cut(word)))
pieces = [piece for word in words for piece in cut(word)]

# %% [markdown]
# ## 2. The frame: [D18] section 3, "Input/Output Representations"
#
# [CLS] stands before the text and [SEP] after it. Of a pair, the second text would follow with a
# [SEP] of its own, all of them in segment 1 (the paper's B); our tokens are in segment 0 (A).

# %%
tokens = ["[CLS]", *pieces, "[SEP]"]
input_ids = torch.tensor([vocabulary[token] for token in tokens])  # (T,)
segments = torch.zeros_like(input_ids)  # (T,)
T = len(tokens)
print("\n2. tokens:", tokens)
print("   ids:   ", input_ids.tolist())
encoding = bert.tokenizer.encode(TEXT)
agree_exactly("tokens", tokens, encoding.tokens)
agree_exactly("ids", input_ids.tolist(), encoding.input_ids)

# %% [markdown]
# ## 3. Pieces to vectors: [D18] figure 2
#
# Three tables have a row per piece, per segment and per position; the rows are looked up and added.
# Here minibert's modules serve as a shelf: we take their `weight`, and never call them.
#
# Two departures from [V17] are visible already. Positions are *learned*, where section 3.5 has
# sinusoids; and the rows are not multiplied by sqrt(H), as section 3.4 does. A third is the
# LayerNorm on top, which figure 2 does not show.
#
#     LayerNorm(x) = (x - mean) / sqrt(variance + eps) * g + b        [B16] equations (3) and (4)
#
# (The paper has no eps.)

# %%


def layer_norm(x: Tensor, norm: torch.nn.LayerNorm) -> Tensor:
    """(T, H) -> (T, H): each row gets mean 0 and variance 1, then a learned scale and shift."""
    mean = x.mean(dim=-1, keepdim=True)  # (T, 1)
    variance = ((x - mean) ** 2).mean(dim=-1, keepdim=True)  # (T, 1), divided by H, not by H - 1
    return (x - mean) / (variance + config.layer_norm_eps).sqrt() * norm.weight + norm.bias


shelf = model.embeddings
summed = shelf.word.weight[input_ids] + shelf.token_type.weight[segments]  # (T, H)
summed = summed + shelf.position.weight[torch.arange(T)]  # (T, H)
embedded = layer_norm(summed, shelf.norm)  # (T, H)

print("\n3. embeddings")
states = bert.states(TEXT, attentions=True)  # what minibert gives: (L + 1, T, H), (L, A, T, T)
agree("state 0: the embeddings", embedded, states.hidden_states[0])

# %% [markdown]
# ## 4. One attention head: [V17] equation (1)
#
#     Attention(Q, K, V) = softmax(Q K^T / sqrt(D)) V
#
# Each token asks a question (its row of Q), each token has a label (its row of K), and where they
# fit, the token's content (its row of V) is read. Q, K and V are three linear maps of the same
# vectors. The heads share one big matrix, and head a owns D rows of it. In the papers these maps
# have no bias; in the released model each has one. (A batch with padding adds one step: a large
# negative number on the scores of what is not there, `attention_bias` in minibert/model.py.)

# %%


def head_by_hand(x: Tensor, layer: int, head: int) -> tuple[Tensor, Tensor]:
    """(T, H) -> probabilities (T, T) and context (T, D) of one head."""
    attention = model.encoder.layers[layer].attention
    own = slice(head * D, (head + 1) * D)
    query = x @ attention.query.weight[own].T + attention.query.bias[own]  # (T, D)
    key = x @ attention.key.weight[own].T + attention.key.bias[own]  # (T, D)
    value = x @ attention.value.weight[own].T + attention.value.bias[own]  # (T, D)
    scores = query @ key.T / math.sqrt(D)  # (T, T): row = who reads, column = who is read
    largest = scores.amax(dim=-1, keepdim=True)  # (T, 1); without it, exp could overflow
    weights = (scores - largest).exp()
    probabilities = weights / weights.sum(dim=-1, keepdim=True)  # (T, T), each row sums to 1
    return probabilities, probabilities @ value


HEAD = 4  # in a tensor, where all is counted from 0
NAME = f"1-{HEAD + 1}"  # to people, as in `minibert plot --head`: layer and head, counted from 1
probabilities, context = head_by_hand(embedded, layer=0, head=HEAD)
print(f"\n4. head {NAME}")
agree("probabilities", probabilities, states.attentions[0, HEAD])
inside = ["encoder.layers.0.attention.context", "encoder.layers.0.attention"]
with minibert.capture(model, inside) as seen:
    model(input_ids[None], segments[None])  # a batch of one: (1, T)
agree("context", context, seen[inside[0]][0, HEAD])
bank = tokens.index("bank")
strongest = probabilities[bank].topk(3)
for share, column in zip(strongest.values.tolist(), strongest.indices.tolist(), strict=True):
    print(f"    'bank' takes {share:4.0%} of its reading from {tokens[column]!r}")

# %% [markdown]
# ## 5. All heads: [V17] section 3.2.2
#
#     MultiHead = Concat(head_1, ..., head_A) W_O

# %%


def attention_by_hand(x: Tensor, layer: int, without: int | None = None) -> Tensor:
    """(T, H) -> (T, H); if asked, with zeros in the place of one head."""
    output = model.encoder.layers[layer].attention.output
    contexts = [head_by_hand(x, layer, head)[1] * (head != without) for head in range(A)]
    joined = torch.cat(contexts, dim=-1)  # (T, H), as H = A D
    return joined @ output.weight.T + output.bias


print(f"\n5. all {A} heads")
agree("multi-head attention", attention_by_hand(embedded, layer=0), seen[inside[1]][0])

# %% [markdown]
# ## 6. One layer: [V17] sections 3.1 and 3.3
#
#     x = LayerNorm(x + Attention(x)), then LayerNorm(x + FFN(x))     [V17] section 3.1
#     FFN(x) = GELU(x W_1 + b_1) W_2 + b_2                            [V17] equation (2)
#     GELU(x) = x (1 + erf(x / sqrt(2))) / 2                          [H16] section 2
#
# LayerNorm comes *after* the sum (post-LN); most models since put it before. [V17] has ReLU where
# [D18] appendix A.2 says GELU, and the released weights were trained with its exact form, by erf.

# %%


def gelu(x: Tensor) -> Tensor:
    """Any shape: x times the probability that a normal variable is below x."""
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def layer_by_hand(x: Tensor, layer: int, without: int | None = None) -> Tensor:
    """State i, (T, H) -> state i + 1, (T, H)."""
    parts = model.encoder.layers[layer]
    x = layer_norm(x + attention_by_hand(x, layer, without), parts.attention_norm)  # (T, H)
    widen, narrow = parts.feed_forward.intermediate, parts.feed_forward.output
    inner = gelu(x @ widen.weight.T + widen.bias)  # (T, I): wider, and each token on its own
    return layer_norm(x + inner @ narrow.weight.T + narrow.bias, parts.feed_forward_norm)


print("\n6. the first layer")
agree("state 1", layer_by_hand(embedded, layer=0), states.hidden_states[1])

# %% [markdown]
# ## 7. All layers: [D18] section 3
#
# The same again, L times, each layer with weights of its own. That is the encoder.

# %%
print(f"\n7. all {L} layers")
by_hand = [embedded]
for layer in range(L):
    by_hand.append(layer_by_hand(by_hand[-1], layer))
    agree(f"state {layer + 1}", by_hand[-1], states.hidden_states[layer + 1])

# %% [markdown]
# ## 8. The pooler: in no paper
#
# [D18] calls the last vector of [CLS] "C" and classifies by it. The released model first sends it
# through one more layer, tanh(W C + b).

# %%
print("\n8. the pooler")
if model.pooler is None:
    print("    this model was published without one")
else:
    dense = model.pooler.dense
    pooled = torch.tanh(by_hand[-1][0] @ dense.weight.T + dense.bias)  # (H,)
    agree("pooler_output", pooled, model(input_ids[None]).pooler_output[0])

# %% [markdown]
# ## 9. Which of these is the vector of a word? [D18] section 5.3, table 7
#
# There is one vector per token and layer: choose. Table 7 tries the last layer, the last but one,
# weighted sums of the last four or of all, and the last four side by side. Of a word of several
# pieces the paper reads the first; here it is their mean. The offsets, where in the text each piece
# comes from, say which pieces are the word's.

# %%
last_four = torch.stack(by_hand[-4:]).sum(dim=0)  # (T, H)
start, end = 0, len("Björk")
of_bjork = [n for n, (a, b) in enumerate(encoding.offsets) if a < end and b > start and b > a]
vector = last_four[of_bjork].mean(dim=0)  # (H,)
print("\n9. 'Björk' is", [tokens[n] for n in of_bjork])
library = bert.vectors(TEXT, layers=[-4, -3, -2, -1], combine="sum", unit="word")
agree("sum of the last four, 'Björk'", vector, torch.from_numpy(library.vectors[0]))

# %% [markdown]
# ## 10. One word, two senses
#
# In the word table all banks are one row. Each layer mixes in what stands around them, and soon two
# banks of a river are more alike than the bank of a river and the one that lends money.

# %%
TEXTS = [TEXT, "They fished from the bank.", "The bank raised its interest rate."]


def states_by_hand(text: str) -> tuple[list[str], list[Tensor]]:
    """A text to its tokens, and to its word rows followed by states 1 to L, each (T, H)."""
    encoded = bert.tokenizer.encode(text)
    ids = torch.tensor(encoded.input_ids)
    word_rows = shelf.word.weight[ids]
    x = word_rows + shelf.token_type.weight[0] + shelf.position.weight[: len(ids)]
    x = layer_norm(x, shelf.norm)
    layers = [word_rows]
    for layer in range(L):
        x = layer_by_hand(x, layer)
        layers.append(x)
    return encoded.tokens, layers


banks = []
for text in TEXTS:
    its_tokens, layers = states_by_hand(text)
    banks.append(torch.stack(layers)[:, its_tokens.index("bank")])  # (L + 1, H)
vectors = torch.stack(banks, dim=1)  # (L + 1, 3, H)
units = vectors / vectors.norm(dim=-1, keepdim=True)
cosines = units @ units.transpose(1, 2)  # (L + 1, 3, 3)
print("\n10. the cosine of 'bank' in two sentences")
print("    layer    river and river   river and money")
for layer, cosine in enumerate(cosines):
    name = "static" if layer == 0 else str(layer)
    print(f"    {name:9}{cosine[0, 1].item():15.2f}{cosine[0, 2].item():18.2f}")
agree("cosines", cosines, torch.from_numpy(bert.compare("bank", TEXTS).similarity))

# %% [markdown]
# ## 11. Look inside, and change it
#
# All this time we computed beside the model. The other way is a hook: torch calls a function of
# ours whenever a module has computed something. `minibert.capture` is that and some care, and
# `minibert.edit` puts another tensor in the place of the one that was computed. Here our head is
# switched off, by hook and by hand.

# %%
print("\n11. hooks")
caught: list[Tensor] = []
handle = model.encoder.layers[0].register_forward_hook(lambda *call: caught.append(call[2]))
model(input_ids[None])
handle.remove()
agree("torch's own hook, state 1", caught[0][0], by_hand[1])

with minibert.edit(model, {"encoder.layers.0.attention.context": minibert.ablate_heads([HEAD])}):
    edited = bert.states(TEXT).hidden_states

agree(f"state 1 without head {NAME}", layer_by_hand(embedded, 0, without=HEAD), edited[1])
moved = (edited[-1] - states.hidden_states[-1]).norm(dim=-1)  # (T,)
share = moved / states.hidden_states[-1].norm(dim=-1)  # (T,), of each vector's length
at = int(share.argmax())
print(f"    without it the last vector of {tokens[at]!r} is {share[at]:.0%} of its length away")

print(f"\nEach step to the vectors of {MODEL} gave the same by hand as by minibert.")

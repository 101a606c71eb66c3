"""What readers of BERT look at first, each a short function on what hooks and states give.

    heads        ablate_each_head
    causes       patch_grid
    attention    attention_entropy, attention_distance, word_attention, attention_rollout
    geometry     linear_cka, anisotropy
    prediction   read_out

Attention probabilities are (..., T, T), row = the token that reads, as `capture` and `states` give
them. Read next: lines.py.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from minibert.edits import ablate_heads, edit, patch_from
from minibert.heads import Head
from minibert.hooks import capture
from minibert.logits import find_part
from minibert.model import BertModel, BertOutput


def ablate_each_head(model: BertModel, output: Callable[[], Tensor]) -> Tensor:
    """How an output changes when one head at a time is taken out (its context set to zero).

    Args:
        model: the model that `output` runs.
        output: runs the model on inputs of your choice and returns one number, such as a loss.

    Returns:
        (L, A), the output without that head minus the output with all.

    Source: [Michel et al. 2019], arXiv 1905.10650, section 3.2.
    """
    layers, heads = model.config.num_hidden_layers, model.config.num_attention_heads
    with torch.no_grad():
        whole = output()
        effects = torch.empty(layers, heads, dtype=whole.dtype)
        for layer in range(layers):
            for head in range(heads):
                name = f"encoder.layers.{layer}.attention.context"
                with edit(model, {name: ablate_heads([head])}):
                    effects[layer, head] = output() - whole
    return effects


def patch_grid(
    model: BertModel, output: Callable[[], Tensor], source: Callable[[], object]
) -> Tensor:
    """Where a difference between two sentences lives: activation patching, state by state.

    Args:
        model: the model that both run.
        output: runs one sentence and returns one number.
        source: runs the other one, which must have as many tokens.

    Returns:
        (L + 1, T): the output when the vector of token t in state i is that of the other sentence.
        A row of state i at which all tokens were patched would be the other sentence itself.

    Source: [Vig et al. 2020], arXiv 2004.12265, and for single tokens [Meng et al. 2022],
    arXiv 2202.05262, section 2.1.
    """
    with torch.no_grad():
        with capture(model, "hidden_states", detach=True) as seen:
            source()
            stored = dict(seen)
        tokens = stored["embeddings"].shape[1]
        rows = []
        for name, state in stored.items():
            row = []
            for position in range(tokens):
                with edit(model, {name: patch_from(state, [position])}):
                    row.append(output())
            rows.append(torch.stack(row))
    return torch.stack(rows)


def attention_entropy(attentions: Tensor) -> Tensor:
    """How widely each token reads, in nats: 0 for one token only, ln T for all alike.

    (..., T, T) -> (..., T). Source: [Clark et al. 2019], arXiv 1906.04341, section 3.3.
    """
    entropy: Tensor = torch.special.entr(attentions).sum(dim=-1)
    return entropy


def attention_distance(attentions: Tensor) -> Tensor:
    """How far away each token reads, in tokens: the mean of |reader - read|, by probability.

    (..., T, T) -> (..., T). Source: [Vig and Belinkov 2019], arXiv 1906.04284.
    """
    places = torch.arange(attentions.shape[-1], device=attentions.device)
    distances = (places[:, None] - places).abs()  # (T, T)
    return (attentions * distances).sum(dim=-1)


def word_attention(attentions: Tensor, word_ids: Sequence[int | None]) -> Tensor:
    """From tokens to words W: what goes to a word is summed, what comes from it averaged.

    Args:
        attentions: (..., T, T).
        word_ids: of an encoding, a number for each token; None (an added token) is a word by
            itself. A number that comes again later, as in a pair, is another word.

    Returns:
        (..., W, W), words in the order of the text; each row still sums to 1.

    Source: [Clark et al. 2019], arXiv 1906.04341, section 4.1.
    """
    if len(word_ids) != attentions.shape[-1]:
        raise ValueError(f"{len(word_ids)} word_ids for {attentions.shape[-1]} tokens")
    words = [0]
    for before, word in zip(word_ids, word_ids[1:], strict=False):
        words.append(words[-1] + (word is None or word != before))
    membership = torch.nn.functional.one_hot(torch.tensor(words)).to(attentions)  # (T, W)
    return (membership / membership.sum(dim=0)).T @ attentions @ membership


def attention_rollout(attentions: Tensor) -> Tensor:
    """How much each state's tokens hold of each input token, if attention were all there is.

    A layer mixes as half of what its heads read, on average, and half of what was there.

    Args:
        attentions: (L, A, T, T) of one text.

    Returns:
        (L, T, T): [i, t, s] is the share of input token s in token t of state i + 1; rows sum to 1.

    Source: [Abnar and Zuidema 2020], arXiv 2005.00928, attention rollout.
    """
    mixing = (attentions.mean(dim=1) + torch.eye(attentions.shape[-1]).to(attentions)) / 2
    shares = [mixing[0]]
    for layer in mixing[1:]:
        shares.append(layer @ shares[-1])
    return torch.stack(shares)


def linear_cka(first: Tensor, second: Tensor) -> Tensor:
    """How alike two sets of vectors of the same tokens are, up to rotation and scale: 0 to 1.

    Args:
        first: (N, H), a vector a token, such as one layer's.
        second: (N, any), of the same tokens in the same order, such as another layer's.

    Returns:
        One number. It is biased upwards unless N is much more than H.

    Source: [Kornblith et al. 2019], arXiv 1905.00414, CKA with a linear kernel.
    """
    if first.dim() != 2 or second.dim() != 2 or len(first) != len(second):
        shapes = f"{tuple(first.shape)} and {tuple(second.shape)}"
        raise ValueError(f"expected two matrices with a row for each token, got {shapes}")
    first, second = first - first.mean(dim=0), second - second.mean(dim=0)
    common = torch.linalg.matrix_norm(first.T @ second) ** 2
    norms = torch.linalg.matrix_norm(first.T @ first) * torch.linalg.matrix_norm(second.T @ second)
    similarity: Tensor = common / norms
    return similarity


def anisotropy(vectors: Tensor) -> Tensor:
    """The mean cosine of two different tokens: 0 if directions are uniform, 1 if all are one.

    Args:
        vectors: (..., N, H), of tokens drawn at random from many texts, N at least 2; with all
            states before it, (L + 1, N, H) gives one number a state.

    Returns:
        (...), in [-1, 1]. The mean over all pairs, not over a sample of them.

    Source: [Ethayarajh 2019], arXiv 1909.00512.
    """
    count = vectors.shape[-2]
    if count < 2:
        raise ValueError(f"it takes two vectors or more, got {count}")
    units = torch.nn.functional.normalize(vectors, dim=-1)
    # The sum of all cosines is the squared length of the sum of the unit vectors.
    return (units.sum(dim=-2).square().sum(dim=-1) - count) / (count * (count - 1))


def read_out(hidden_states: Tensor, head: Head | None, top_k: int) -> Tensor:
    """What [MASK] would be after each layer, if it were the last: the "logit lens".

    BERT's layers end with a LayerNorm, and so does the transform in its masked-LM head: a state
    goes into the head as it is, where for a pre-LN model a final LayerNorm comes first.

    Args:
        hidden_states: (L + 1, H), the states of one token, such as `states.hidden_states[:, 3]`.
        head: masked-lm or pretraining, of the model: `bert.head`.
        top_k: how many ids to give, from 1 to V.

    Returns:
        int64 (L + 1, top_k): in each row the likeliest ids after that layer, the likeliest first.

    Source: [nostalgebraist 2020], "interpreting GPT: the logit lens", lesswrong.com.
    """
    if hidden_states.dim() != 2:
        raise ValueError(f"expected the states of one token, got {tuple(hidden_states.shape)}")
    part = find_part(head, "masked-lm")
    weight = part.get_parameter("dense.weight")
    with torch.no_grad():
        logits: Tensor = part(BertOutput(hidden_states.to(weight.device, weight.dtype), None))
    (count,) = logits.shape[1:]
    if not 1 <= top_k <= count:
        raise ValueError(f"top_k must be from 1 to {count}, got {top_k}")
    return logits.topk(top_k).indices

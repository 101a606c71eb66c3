"""The heads: what turns BERT's vectors into answers, in pre-training and in fine-tuning.

Holds MaskedLMHead; LinearHead, which is five of the others; PretrainingHead; and BertWithHead,
which training needs. Follows [D18] figure 1, sections 3.1 and 4, and appendix A. Read next:
names.py, what stands in between.
"""

from dataclasses import replace
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from minibert.config import BertConfig
from minibert.encoder import activation
from minibert.head_config import HeadConfig
from minibert.model import BertModel, BertOutput


class PretrainingOutput(NamedTuple):
    """Both logits of [D18] section 3.1, or both labels."""

    prediction: Tensor  # (..., V); as labels (...)
    seq_relationship: Tensor  # (B, 2), class 0: the second text follows the first; as labels (B,)


class MaskedLMHead(nn.Module):
    """Which piece stands here? One number for each of the vocabulary, at every position.

        logits = LayerNorm(GELU(x W + b)) E^T + bias                 [D18] section 3.1, task 1

    E is the word embedding, as in [V17] section 3.4: `decoder` is that very module, so that both
    stay tied through loading, training and `to`. How the released model departs from [D18]: the
    layer in front of E, its LayerNorm, and the bias are not in it.

    Source: google-research/bert@eedf571 run_pretraining.py:240-264.
    """

    def __init__(self, config: BertConfig, head: HeadConfig, word: nn.Embedding) -> None:
        super().__init__()
        self.config = head
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = activation(config.hidden_act)
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.decoder = word if head.tied else nn.Embedding(*word.weight.shape)
        self.bias = nn.Parameter(word.weight.new_zeros(config.vocab_size))

    def forward(self, output: BertOutput) -> Tensor:
        """Vectors (..., H) -> logits (..., V): of all positions, or of those that were chosen."""
        transformed = self.norm(self.activation(self.dense(output.last_hidden_state)))  # (..., H)
        return F.linear(transformed, self.decoder.weight, self.bias)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy, in nats, of labels (...), int64; where a label is -100, none."""
        return F.cross_entropy(logits.flatten(0, -2), labels.flatten())


class LinearHead(nn.Module):
    """One linear layer, on the pooler's vector or on each token's: [D18] figure 4.

    next-sentence: [D18] section 3.1, task 2. (B, 2); class 0: the second text follows the first.
    sequence-classification: section 4.1. (B, number of labels).
    question-answering: section 4.2. (B, T, 2): how likely the answer starts and ends here.
    multiple-choice: section 4.4. (B N, 1): of each question with each of its N answers.
    token-classification: section 5.3. (B, T, number of labels).

    How the released model departs from the paper: where that says C, the vector of [CLS], the code
    reads the pooler's, which is tanh(W C + b). There is a bias, where the paper has W alone, or S
    and E; and an answer may be anywhere in the text, where section 4.2 asks the paragraph alone.

    Source: google-research/bert@eedf571 run_pretraining.py:285-290, and create_model in
    run_classifier.py and run_squad.py, which have no dropout for questions.
    """

    def __init__(self, config: BertConfig, head: HeadConfig) -> None:
        super().__init__()
        self.config = head
        drops = head.name not in ("next-sentence", "question-answering")
        self.dropout = nn.Dropout(head.dropout if drops else 0.0)
        self.linear = nn.Linear(config.hidden_size, len(head.labels))

    def forward(self, output: BertOutput) -> Tensor:
        """Pooled (B, H) -> (B, labels), or vectors (B, T, H) -> (B, T, labels)."""
        vectors = output.pooler_output if self.config.reads_pooler else output.last_hidden_state
        logits: Tensor = self.linear(self.dropout(vectors))
        return logits

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """What training minimises: cross-entropy in nats, or for regression the squared error.

        Args:
            logits: as forward gives them.
            labels: int64, where -100 does not count: (B,) for next-sentence and multiple-choice;
                (B, T) for tokens; (B, 2), where an answer starts and ends, for questions, where a
                number from T on does not count; (B,) for texts, or (B, labels), floating, of 0 and
                1 for multi-label and of any numbers for regression.
        """
        if self.config.name == "question-answering":
            tokens = logits.shape[1]
            start, end = labels.clamp(0, tokens).unbind(-1)
            of_start = F.cross_entropy(logits[..., 0], start, ignore_index=tokens)
            return (of_start + F.cross_entropy(logits[..., 1], end, ignore_index=tokens)) / 2
        if self.config.name == "multiple-choice":
            return F.cross_entropy(logits.view(len(labels), -1), labels)
        if self.config.problem_type == "regression":
            return F.mse_loss(logits.view(labels.shape), labels)
        if self.config.problem_type == "multi_label_classification":
            return F.binary_cross_entropy_with_logits(logits, labels)
        return F.cross_entropy(logits.flatten(0, -2), labels.flatten())


class PretrainingHead(nn.Module):
    """Both heads of pre-training: [D18] section 3.1."""

    def __init__(self, config: BertConfig, head: HeadConfig, word: nn.Embedding) -> None:
        super().__init__()
        self.config = head
        self.masked_lm = MaskedLMHead(config, replace(head, name="masked-lm"), word)
        self.next_sentence = LinearHead(config, HeadConfig("next-sentence"))

    def forward(self, output: BertOutput) -> PretrainingOutput:
        """Vectors (..., H) and pooled (B, H) -> (..., V) and (B, 2)."""
        return PretrainingOutput(self.masked_lm(output), self.next_sentence(output))

    def loss(self, logits: PretrainingOutput, labels: PretrainingOutput) -> Tensor:
        """The sum of both losses: [D18] appendix A.2."""
        of_pieces = self.masked_lm.loss(logits.prediction, labels.prediction)
        return of_pieces + self.next_sentence.loss(logits.seq_relationship, labels.seq_relationship)


Head = MaskedLMHead | LinearHead | PretrainingHead


def make_head(model: BertModel, head: HeadConfig) -> Head:
    """A new head for a model: weights drawn as BERT's are, biases 0, in the model's dtype.

    Raises:
        ValueError: if the head reads the pooler and the model has none.
    """
    if head.reads_pooler and model.pooler is None:
        raise ValueError(f"the head {head.name} reads the pooler's vector; the model has no pooler")
    word = model.embeddings.word
    made: Head
    if head.name in ("masked-lm", "pretraining"):
        kind = MaskedLMHead if head.name == "masked-lm" else PretrainingHead
        made = kind(model.config, head, word)
    else:
        made = LinearHead(model.config, head)
    std = model.config.initializer_range
    for module in made.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
            nn.init.zeros_(module.bias)
    return made.to(word.weight.device, word.weight.dtype)


class BertWithHead(nn.Module):
    """A model and a head in one module, as training, DDP and torch.compile want it."""

    def __init__(self, bert: BertModel, head: Head) -> None:
        super().__init__()
        self.bert = bert
        self.head = head

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor | PretrainingOutput:
        """Ids as BertModel takes them -> the head's logits."""
        logits: Tensor | PretrainingOutput = self.head(
            self.bert(input_ids, token_type_ids, attention_mask)
        )
        return logits

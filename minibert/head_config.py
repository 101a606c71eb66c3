"""What a head is: `HeadConfig`, by the keys of config.json that say so.

Read next: heads.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# minibert's name -> the class of Hugging Face's library, which config.json calls "architectures".
HEADS = {
    "masked-lm": "BertForMaskedLM",
    "next-sentence": "BertForNextSentencePrediction",
    "pretraining": "BertForPreTraining",
    "sequence-classification": "BertForSequenceClassification",
    "token-classification": "BertForTokenClassification",
    "question-answering": "BertForQuestionAnswering",
    "multiple-choice": "BertForMultipleChoice",
}
PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")

_READ_POOLER = ("next-sentence", "pretraining", "sequence-classification", "multiple-choice")
_FIXED_LABELS = {
    "next-sentence": ("follows", "random"),
    "question-answering": ("start", "end"),
    "multiple-choice": ("choice",),
}
_MOST_LABELS = 1_000_000


@dataclass(frozen=True)
class HeadConfig:
    """What a head has beside the sizes of BertConfig.

    Raises:
        ValueError: if there is no such head, label or problem type.
    """

    name: str  # a key of HEADS
    labels: tuple[str, ...] = ()  # what each number of the last axis of its logits is for
    problem_type: str = "single_label_classification"  # one of PROBLEM_TYPES, of texts
    dropout: float = 0.1  # in training, on what a classifier reads, in [0, 1)
    tied: bool = True  # whether the decoder of a masked LM is the word embedding

    def __post_init__(self) -> None:
        if self.name not in HEADS:
            raise ValueError(f"there is no head {self.name!r}; there are {', '.join(HEADS)}")
        if self.has_labels:
            if not self.labels or len(set(self.labels)) < len(self.labels):
                got = f"{list(self.labels)!r:.80}"
                raise ValueError(f"{self.name} needs labels, each once, got {got}")
        elif self.labels:
            raise ValueError(f"the head {self.name} has no labels to choose")
        else:
            object.__setattr__(self, "labels", _FIXED_LABELS.get(self.name, ()))
        known: Sequence[str] = PROBLEM_TYPES[:1]
        if self.name == "sequence-classification":  # of one class alone, every text would be
            known = PROBLEM_TYPES[len(self.labels) == 1 :]
        if self.problem_type not in known:
            raise ValueError(
                f"problem_type of {self.name} must be one of {', '.join(known)} with labels "
                f"{list(self.labels)[:9]!r:.80}, got {self.problem_type!r:.80}"
            )
        if not (isinstance(self.dropout, int | float) and 0 <= self.dropout < 1):
            raise ValueError(f"classifier_dropout must be in [0, 1), got {self.dropout!r:.80}")

    @classmethod
    def from_dict(cls, name: str, values: Mapping[str, Any]) -> "HeadConfig":
        """Read the content of a config.json; what is missing is as in Hugging Face's library.

        But for one thing: there a missing problem_type is settled when labels come, by their
        dtype; here it is "regression" for one label, else "single_label_classification".

        Raises:
            ValueError: if there is no such head, or a value is not one that the class takes.
        """
        labels: tuple[str, ...] = ()
        problem = PROBLEM_TYPES[0]
        if name.endswith("classification"):
            labels = _labels(values.get("id2label"), values.get("num_labels"))
        if name == "sequence-classification":
            problem = values.get("problem_type") or PROBLEM_TYPES[2 if len(labels) == 1 else 0]
        dropout = values.get("classifier_dropout")
        dropout = values.get("hidden_dropout_prob", 0.1) if dropout is None else dropout
        return cls(name, labels, problem, dropout, values.get("tie_word_embeddings") is not False)

    @property
    def has_labels(self) -> bool:
        """Whether its labels are somebody's choice."""
        return self.name.endswith("classification")

    @property
    def reads_pooler(self) -> bool:
        """Whether it reads the pooler's vector, so that a model without a pooler cannot have it."""
        return self.name in _READ_POOLER

    def to_dict(self) -> dict[str, Any]:
        """The keys of config.json, as `from_dict` reads them."""
        values: dict[str, Any] = {"architectures": [HEADS[self.name]]}
        if self.has_labels:
            values["id2label"] = {str(n): label for n, label in enumerate(self.labels)}
            values["label2id"] = {label: n for n, label in enumerate(self.labels)}
            values["classifier_dropout"] = self.dropout
        if self.name == "multiple-choice":
            values["classifier_dropout"] = self.dropout
        if self.name == "sequence-classification":
            values["problem_type"] = self.problem_type
        if not self.tied:
            values["tie_word_embeddings"] = False
        return values


def _labels(id2label: Any, count: Any) -> tuple[str, ...]:
    """The names of the classes, by their numbers, which are keys of JSON and so strings."""
    if id2label is None:
        count = 2 if count is None else count
        if not (type(count) is int and 1 <= count <= _MOST_LABELS):
            expected = f"an int from 1 to {_MOST_LABELS}"
            raise ValueError(f"num_labels must be {expected}, got {count!r:.80}")
        return tuple(f"LABEL_{number}" for number in range(count))
    numbers = [str(number) for number in range(len(id2label))] if hasattr(id2label, "keys") else []
    if not numbers or set(id2label) != set(numbers):
        raise ValueError(f"id2label must name the classes 0, 1, 2, ..., got {id2label!r:.80}")
    return tuple(str(id2label[number]) for number in numbers)

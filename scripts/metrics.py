"""How good predictions are: what finetune.py prints. Needs the extra train.

Counting is left to scikit-learn, scipy and seqeval. Only for SQuAD is there no kept library: its
two numbers are defined by its evaluate-v2.0.py, and written here.
"""

import re
import string
import warnings
from collections import Counter
from collections.abc import Sequence
from itertools import chain

import numpy as np
from scipy.stats import pearsonr, spearmanr
from seqeval.metrics import f1_score as span_f1
from seqeval.metrics import precision_score, recall_score
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

_SPAN_TAG = re.compile("O|[BIES]-.+")


def of_classes(expected: Sequence[int], predicted: Sequence[int], count: int) -> dict[str, float]:
    """Accuracy, F1 and Matthews' correlation.

    F1 is that of class 1 if there are two classes, as in GLUE, else the mean over those classes of
    `count` that came, as scikit-learn has it.
    """
    name, average = ("f1", "binary") if count == 2 else ("macro_f1", "macro")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there was one class only, which 0 says
        matthews = float(matthews_corrcoef(expected, predicted))
    return {
        "accuracy": float(accuracy_score(expected, predicted)),
        name: float(f1_score(expected, predicted, average=average, zero_division=0)),
        "matthews": matthews,
    }


def of_numbers(expected: Sequence[float], predicted: Sequence[float]) -> dict[str, float]:
    """Pearson's and Spearman's correlation; 0 where one side is constant, which has none."""
    if np.ptp(expected) == 0 or np.ptp(predicted) == 0:
        return {"pearson": 0.0, "spearman": 0.0}
    return {
        "pearson": float(pearsonr(expected, predicted).statistic),
        "spearman": float(spearmanr(expected, predicted).statistic),
    }


def of_tags(
    expected: list[list[str]], predicted: list[list[str]], tags: Sequence[str]
) -> dict[str, float]:
    """Accuracy by word; if all tags are as B-PER, I-PER, O also precision, recall, F1 of spans.

    Spans are counted as conlleval does: right if both ends and the kind are.
    """
    flat = [list(chain.from_iterable(side)) for side in (expected, predicted)]
    metrics = {"accuracy": float(accuracy_score(*flat))}
    if all(map(_SPAN_TAG.fullmatch, tags)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that nothing was found, which 0 says
            metrics["precision"] = float(precision_score(expected, predicted, zero_division=0))
            metrics["recall"] = float(recall_score(expected, predicted, zero_division=0))
            metrics["f1"] = float(span_f1(expected, predicted, zero_division=0))
    return metrics


def of_answers(expected: Sequence[Sequence[str]], predicted: Sequence[str]) -> dict[str, float]:
    """Mean exact match and F1 of words, each against the right answer that fits best.

    Args:
        expected: for each question its right answers; none of them means that "" is right.
        predicted: for each question an answer, or "".
    """
    exact, overlap = 0.0, 0.0
    for answers, answer in zip(expected, predicted, strict=True):
        right = [text for text in answers if words_of(text)] or [""]
        exact += max(words_of(text) == words_of(answer) for text in right)
        overlap += max(_overlap(words_of(text), words_of(answer)) for text in right)
    return {"exact": exact / len(predicted), "f1": overlap / len(predicted)}


def words_of(answer: str) -> list[str]:
    """The words that count: in lower case, without punctuation and articles.

    >>> words_of("The  Beatles' (an English band)")
    ['beatles', 'english', 'band']
    """
    kept = "".join(letter for letter in answer.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()


def _overlap(expected: list[str], predicted: list[str]) -> float:
    if not expected or not predicted:
        return float(expected == predicted)
    common = sum((Counter(expected) & Counter(predicted)).values())
    return 2 * common / (len(expected) + len(predicted))

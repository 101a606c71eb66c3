"""Everything that one model needs, in one object: `Bert`; and `states` of a text.

Read next: loading.py.
"""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

from minibert.answers import Answer, Search, answer
from minibert.batches import mixed_states
from minibert.config import BertConfig
from minibert.encoding import Encoding
from minibert.fill import Blank, fill
from minibert.heads import Head
from minibert.hooks import capture
from minibert.labels import Score, Tagged, classify, join_pairs, next_sentence, tag
from minibert.likelihood import Likelihood, pseudo_log_likelihood
from minibert.model import BertModel
from minibert.senses import Comparison, compare
from minibert.source import Source
from minibert.tokenizer import WordPieceTokenizer
from minibert.vectors import Reading, Text, TextOrPair, Vectors, join, read, with_spans


@dataclass(frozen=True)
class States:
    """What one text, or pair of texts, becomes: a vector per token and layer, on the CPU."""

    encoding: Encoding
    hidden_states: Tensor  # (L + 1, T, H): states 0 to L
    attentions: Tensor | None  # (L, A, T, T) if asked for; [i, a, t, s]: how much t reads from s

    @property
    def tokens(self) -> list[str]:
        """The pieces, [CLS] and [SEP] among them."""
        return self.encoding.tokens

    @property
    def offsets(self) -> list[tuple[int, int]]:
        """Where in the text each token is from; (0, 0) for an added one."""
        return self.encoding.offsets

    @property
    def word_ids(self) -> list[int | None]:
        """The word that each token is of; None for an added one."""
        return self.encoding.word_ids


@dataclass(frozen=True)
class Bert:
    """A tokenizer and the model that understands its ids."""

    config: BertConfig
    tokenizer: WordPieceTokenizer
    model: BertModel
    source: Source | None = None  # where it was loaded from; None if it was not
    head: Head | None = None  # if one was asked for: what reads the model's output

    def vectors(  # noqa: PLR0913 - written by hand, by people; Reading says it for programs
        self,
        texts: TextOrPair | Sequence[TextOrPair | list[str]],
        layers: int | Sequence[int] | str = -1,
        combine: str | Sequence[float] = "sum",
        unit: str = "token",
        pooling: str | None = None,
        normalize: bool | None = None,
        *,
        span: tuple[int, int] | Sequence[tuple[int, int]] | None = None,
        special_tokens: bool = True,
        long: str = "windows",
        stride: int | None = None,
    ) -> Vectors:
        """One vector per token, word, stretch of text or whole text, from any layers.

        Args:
            texts: one text, or a tuple of two for a pair; or a list of these. A list of str in that
                list is one text, too: its words, which are taken as they are.
            layers: which states; Reading explains this and the next ones.
            combine: from several states to one vector.
            unit: "token", "word", "span" or "sentence".
            pooling: from tokens to a unit; for None see the method `reading`.
            normalize: divide each vector by its length; for None see there, too.
            span: for unit="span": (start, end) in characters, or a list of them, one per text.
            special_tokens: whether [CLS] and [SEP] count.
            long: for more tokens than the model reads: "windows", "truncate" (warns) or "error".
            stride: how many tokens two windows share; None means half of what fits.

        Raises:
            ValueError: if an argument is wrong, or a span or word has no token.
        """
        reading = self.reading(layers, combine, unit, pooling, normalize, special_tokens)
        return self._read(texts, reading, span, long, stride)

    def reading(
        self,
        layers: int | Sequence[int] | str = -1,
        combine: str | Sequence[float] = "sum",
        unit: str = "token",
        pooling: str | None = None,
        normalize: bool | None = None,
        special_tokens: bool = True,
    ) -> Reading:
        """The Reading that these arguments of `vectors` stand for with this model.

        None means "mean" and False; but for a sentence what the model's folder says, if it does
        (1_Pooling/config.json of sentence-transformers).
        """
        says = self.source.pooling if self.source and unit == "sentence" else None
        pooling = pooling or (says.mode if says else "mean")
        normalize = normalize if normalize is not None else says is not None and says.normalize
        return Reading(layers, combine, unit, pooling, normalize, special_tokens)

    def compare(self, word: str, texts: Sequence[str]) -> Comparison:
        """How alike a word is in several sentences, at every layer.

        Args:
            word: a word, or some in a row, as they stand in each text; case does not count.
            texts: in which each occurrence of it counts.

        Returns:
            The occurrences, and the cosine of each two in every layer; the first layer is what a
            static embedding would say, see Comparison.

        Raises:
            ValueError: if a text does not have the word.
        """
        return compare(self.model, self.tokenizer, word, texts)

    def fill(
        self,
        texts: str | Sequence[str],
        top_k: int | None = None,
        targets: Sequence[str] | None = None,
    ) -> list[Blank]:
        """What could stand at each [MASK] of the texts: the arguments are in fill.py.

        Needs head="masked-lm" or "pretraining".
        """
        return fill(self.model, self.head, self.tokenizer, texts, top_k, targets)

    def pseudo_log_likelihood(
        self, texts: str | Sequence[str], unit: str = "token"
    ) -> list[Likelihood]:
        """How likely texts are, by "token" or "word"; likelihood.py says how. Needs "masked-lm"."""
        return pseudo_log_likelihood(self.model, self.head, self.tokenizer, texts, unit)

    @overload
    def next_sentence(self, first: str, second: str) -> float: ...  # type: ignore[overload-overlap]
    @overload
    def next_sentence(self, first: Sequence[str], second: Sequence[str]) -> list[float]: ...
    def next_sentence(
        self, first: str | Sequence[str], second: str | Sequence[str]
    ) -> float | list[float]:
        """The probability that the second text follows the first. Needs head="next-sentence".

        Two lists go together as pairs, and give a list.
        """
        pairs = join_pairs(first, second)
        found = next_sentence(self.model, self.head, self.tokenizer, pairs)
        return found[0] if isinstance(first, str) else found

    def classify(
        self, texts: TextOrPair | Sequence[TextOrPair], max_length: int | None = None
    ) -> list[list[Score]]:
        """Every class with its probability, for each text or pair: see labels.py.

        Needs head="sequence-classification".
        """
        return classify(self.model, self.head, self.tokenizer, texts, max_length)

    def tag(self, texts: str | Sequence[str], aggregation: str = "first") -> list[Tagged]:
        """What each word is, and the spans they make up, for each text: see labels.py.

        Needs head="token-classification".
        """
        return tag(self.model, self.head, self.tokenizer, texts, aggregation)

    def answer(
        self,
        question: str,
        context: str,
        top_k: int = 1,
        max_answer_length: int = 30,
        threshold: float | None = None,
        stride: int | None = None,
    ) -> list[Answer]:
        """The best answers to a question in a context: the arguments are in answers.py, Search.

        Needs head="question-answering".
        """
        search = Search(top_k, max_answer_length, threshold, stride)
        return answer(self.model, self.head, self.tokenizer, question, context, search)

    def _read(
        self,
        texts: TextOrPair | Sequence[TextOrPair | list[str]],
        reading: Reading,
        span: tuple[int, int] | Sequence[tuple[int, int]] | None,
        long: str,
        stride: int | None,
    ) -> Vectors:
        if not isinstance(texts, Iterable):
            raise ValueError(f"texts must be a text or a list of them, got {type(texts).__name__}")
        items = [texts] if isinstance(texts, str | tuple) else texts
        if stride is not None and long != "windows":
            raise ValueError(f'stride goes with long="windows", not {long!r}')
        wanted = with_spans([Text.of(item) for item in items], reading, span)
        encodings = self._encode(wanted, long)
        results = {
            n: read(reading, wanted[n], encodings[n], states)
            for n, states in mixed_states(self.model, encodings, reading, stride)
        }
        return join([results[n] for n in range(len(wanted))])

    def _encode(self, texts: Sequence[Text], long: str) -> list[Encoding]:
        if long not in ("windows", "truncate", "error"):
            raise ValueError(f"long must be 'windows', 'truncate' or 'error', got {long!r}")
        pairs = [text.first if text.second is None else (text.first, text.second) for text in texts]
        encodings = self.tokenizer.encode_batch(pairs)
        most = self.config.max_position_embeddings
        too_long = [n for n, encoding in enumerate(encodings) if len(encoding) > most]
        if long == "windows" or not too_long:
            return encodings
        told = (
            f"{len(too_long)} of {len(texts)} texts have more than the {most} tokens that this "
            f"model reads; the first is text {too_long[0]}, with {len(encodings[too_long[0]])}"
        )
        if long == "error":
            raise ValueError(told)
        warnings.warn(f"{told}; they were cut", stacklevel=4)
        for n in too_long:
            encodings[n] = self.tokenizer.encode(texts[n].first, texts[n].second, most)
        return encodings

    @overload  # a str is a Sequence[str], too, but the first fits it
    def states(  # type: ignore[overload-overlap]
        self, texts: str | tuple[str, str], attentions: bool = ..., max_length: int | None = ...
    ) -> States: ...

    @overload
    def states(
        self,
        texts: Sequence[str | tuple[str, str]],
        attentions: bool = ...,
        max_length: int | None = ...,
    ) -> list[States]: ...

    def states(
        self,
        texts: str | tuple[str, str] | Sequence[str | tuple[str, str]],
        attentions: bool = False,
        max_length: int | None = None,
    ) -> States | list[States]:
        """Every state of every token, text by text, so that nothing is padded.

        Edits that stand on the model (`minibert.edit`) take part.

        Args:
            texts: one text, or a tuple of two for a pair; or a list of these.
            attentions: give the attention probabilities, too. BertViz shows them:
                `head_view(list(states.attentions[:, None]), states.tokens)`.
            max_length: cut texts to so many tokens; None makes a text that is too long an error.

        Returns:
            States; for a list, a list of them.

        Raises:
            ValueError: if a text is too long or no str, or the model is in training mode.
        """
        if self.model.training:
            raise ValueError("the model is in training mode, where dropout is at work: call eval()")
        many = [texts] if isinstance(texts, str | tuple) else texts
        asked = ["hidden_states", "attentions"] if attentions else ["hidden_states"]
        device = self.model.embeddings.word.weight.device
        results = []
        for encoding in self.tokenizer.encode_batch(many, max_length):
            ids, segments = (
                torch.tensor([numbers], device=device)
                for numbers in (encoding.input_ids, encoding.token_type_ids)
            )
            with torch.inference_mode(), capture(self.model, asked) as seen:
                self.model(ids, segments)
            read = torch.cat(seen.attentions).cpu() if attentions else None
            results.append(States(encoding, torch.cat(seen.hidden_states).cpu(), read))
        return results[0] if isinstance(texts, str | tuple) else results

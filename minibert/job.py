"""`Job`: which file to extract from, to which, and what is wanted of it.

Read next: manifest.py.
"""

from dataclasses import dataclass
from pathlib import Path

from minibert.config import BertConfig
from minibert.shards import STORE_DTYPES
from minibert.vectors import Reading

FORMATS = {"": "safetensors", ".npy": "npy", ".jsonl": "jsonl"}  # by the end of the output's name


@dataclass(frozen=True)
class Job:
    """A file to extract from, and what is wanted of it: the options of `minibert extract`.

    Raises:
        ValueError: if an option is not one of those that exist, or two contradict each other.
    """

    input: str  # file name, or - for the input of the process
    output: str
    reading: Reading = Reading()
    format: str | None = None  # of FORMATS; None goes by the name of the output
    field: str | None = None  # of JSON lines
    max_length: int | None = None  # cut texts to so many tokens
    long: str = "windows"  # as for Bert.vectors, with the stride
    stride: int | None = None
    store_dtype: str = "float32"
    batch_tokens: int | None = None  # as for mixed_states
    limit: int | None = None  # how many lines to read

    def __post_init__(self) -> None:
        for name, allowed in (
            ("format", (*FORMATS.values(), None)),
            ("long", ("windows", "truncate", "error")),
            ("store_dtype", tuple(STORE_DTYPES)),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}")
        for name, least in (("batch_tokens", 1), ("limit", 1), ("stride", 0)):
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.stride is not None and self.long != "windows":
            raise ValueError(f"stride goes with windows, not {self.long}")
        if self.reading.unit == "span":
            raise ValueError("lines have no spans: the units of a file are token, word, sentence")
        self._check_format()

    def _check_format(self) -> None:
        if self.kind == "npy" and (self.reading.unit, self.store_dtype) not in (
            ("sentence", "float32"),
            ("sentence", "float16"),
        ):
            raise ValueError("a .npy file is for the unit sentence, in float32 or float16")
        if self.kind == "jsonl" and self.store_dtype != "float32":
            raise ValueError(f"JSON lines have no {self.store_dtype}: values have 6 decimals")

    @property
    def kind(self) -> str:
        """The format, also where it goes by the name of the output."""
        if self.format is not None:
            return self.format
        suffix = "" if Path(self.output).is_dir() else Path(self.output).suffix
        if suffix not in FORMATS:
            raise ValueError(
                f"{self.output} names no format: write NAME.npy, NAME.jsonl or a folder's name "
                "without a dot, or give the format"
            )
        return FORMATS[suffix]


def layer_labels(reading: Reading, num_hidden_layers: int) -> list[int | str]:
    """What the vectors of a row are, by layer: numbers as they were asked for, or a description.

    >>> layer_labels(Reading([-1, -2], "stack"), 12), layer_labels(Reading([-1, -2]), 12)
    ([-1, -2], ['sum of -1, -2'])

    Raises:
        ValueError: if the model has no such layer.
    """
    count = num_hidden_layers + 1
    asked = [reading.layers] if isinstance(reading.layers, int) else reading.layers
    for layer in asked:
        if isinstance(layer, int) and not -count <= layer < count:
            raise ValueError(
                f"there is no layer {layer}: this model has the states 0 (the embedding output) to "
                f"{count - 1} (the last layer), or -{count} to -1"
            )
    numbers = reading.states(num_hidden_layers)
    labels = numbers if isinstance(asked, str) else list(asked)
    if reading.pooling == "pooler":
        return ["pooler"]
    if not isinstance(reading.combine, str):
        terms = [f"{w:g} * ({n})" for w, n in zip(reading.combine, labels, strict=True)]
        return [" + ".join(terms)]
    if reading.combine == "stack" or len(labels) == 1:
        return [*labels]
    return [f"{reading.combine} of {', '.join(map(str, labels))}"]


def row_shape(reading: Reading, config: BertConfig) -> tuple[int, ...]:
    """Of the vectors of one token, word or text.

    >>> row_shape(Reading("all", "concat"), BertConfig()), row_shape(Reading(), BertConfig())
    ((9216,), (768,))
    """
    layers = len(reading.states(config.num_hidden_layers))
    if reading.combine == "stack" and reading.pooling != "pooler":
        return (layers, config.hidden_size)
    return ((layers if reading.combine == "concat" else 1) * config.hidden_size,)

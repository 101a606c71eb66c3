"""What can be asked for on the command line: the commands of `minibert` and their options.

Nothing here needs torch. The values of `extract` are judged by Reading (vectors.py) and Job
(job.py), which its options are named after. Read next: porting.py.
"""

import argparse
import importlib.metadata
from typing import Any

from minibert.head_config import HEADS
from minibert.hub import DEFAULT_MODEL

LAYERS_HELP = """which states, such as -1,-2,-3,-4, or all of the layers (default: -1). Negative
numbers count from the last layer, as in Hugging Face's library and in Google's extract_features.py.
From 0 up they are state numbers: 0 is the embedding output, 1 the first layer (where Google's
script says 0)."""

_OF_FILES = ("long", "stride", "store_dtype", "batch_tokens", "limit", "existing")

# Each command: its name, what it does, and that at more length.
_COMMANDS = (
    (
        "extract",
        "the vector of every token, at chosen layers",
        """minibert extract TEXT ...: the vector of every token of each text, at chosen layers. A
        table on a terminal; else a JSON object a line, in the format of Google's
        extract_features.py. "A ||| B" is a pair of texts.""",
    ),
    (
        "tokenize",
        "the pieces that a text is cut into",
        "minibert tokenize TEXT ...: the pieces of each text, a line each.",
    ),
    (
        "compare",
        "how alike a word is in several sentences, layer by layer",
        """minibert compare WORD TEXT ...: the cosine of each two occurrences of a word. The first
        row is what a static embedding (word2vec, GloVe) would say.""",
    ),
    (
        "lens",
        "a page to look into a model: attention, hidden states, senses, [MASK]",
        """minibert lens TEXT ... -o PAGE.html: what a model makes of the texts, as one file that
        any browser opens without a network. "A ||| B" is a pair, which the model reads together.
        What [MASK] would be is there if the model has a masked-LM head.""",
    ),
    (
        "plot",
        "a picture for a slide: attention, similarity, senses, layers",
        """minibert plot attention TEXT --head 3-8: how much each token reads from each other one in
        that head. plot similarity WORD TEXT ...: the cosine of each two occurrences of a word,
        layer by layer. plot layers TEXT: the cosine of a token's vectors in each two states, the
        mean over the tokens. plot senses FILE: accuracy by state, from what scripts/senses.py
        printed.""",
    ),
    (
        "fill",
        "what could stand at [MASK]",
        """minibert fill TEXT ...: the likeliest pieces for each [MASK], or how likely some words
        are. Words of several pieces compare only with words of as many. A table on a terminal, else
        a JSON object a line.""",
    ),
    (
        "next",
        "how likely one text follows another",
        """minibert next TEXT TEXT: the probability that the second text follows the first. In a
        file a line is "A ||| B".""",
    ),
    (
        "names",
        "the tensors that capture and edit reach, and what others call them",
        """minibert names: every tensor that capture and edit reach, in the order of the forward
        pass, with its shape and its names in other libraries.""",
    ),
    (
        "verify",
        "run the numbers that are published for a model",
        "minibert verify: run the numbers that are published for a model.",
    ),
    (
        "record",
        "write every tensor of fixed inputs, for other implementations",
        "minibert record FOLDER: every tensor of fixed inputs, for other implementations.",
    ),
    (
        "judge",
        "find the first tensor of a dump that differs from a record",
        "minibert judge FOLDER DUMP: the first tensor of a dump that differs from a record.",
    ),
    (
        "live",
        "compare every tensor with transformers, which must be installed",
        "minibert live: compare every tensor with transformers, which must be installed.",
    ),
)


def parser() -> argparse.ArgumentParser:
    """All commands; the one that was given is in `command`."""
    # usage=SUPPRESS: a mistake is told in one line, without the usage before it.
    whole = argparse.ArgumentParser(
        prog="minibert",
        allow_abbrev=False,
        usage=argparse.SUPPRESS,
        description="minibert COMMAND ...: BERT, token by token and layer by layer.",
    )
    version = f"minibert {importlib.metadata.version('minibert-pytorch')}"
    whole.add_argument("--version", action="version", version=version)
    commands = whole.add_subparsers(
        title="commands", metavar="COMMAND", dest="command", required=True, prog=whole.prog
    )
    for name, told, description in _COMMANDS:
        command = commands.add_parser(
            name, allow_abbrev=False, usage=argparse.SUPPRESS, help=told, description=description
        )
        if name in ("extract", "tokenize", "compare", "fill", "next", "lens"):
            _add_texts(command, name)
        elif name in ("record", "judge"):
            _add_bundle(command, name)
        elif name == "plot":
            _add_plot(command)
        _add_model(command, name)
        if name == "extract":
            add_extract_options(command)
        elif name == "tokenize":
            how = command.add_mutually_exclusive_group()
            how.add_argument(
                "--trace", action="store_true", help="each step, tried pieces in (...)"
            )
            how.add_argument("--json", action="store_true", help="ids, tokens, offsets, word ids")
        elif name not in ("record", "names", "lens", "plot"):
            command.add_argument("--json", action="store_true", help="all of it, as JSON")
    return whole


def _add_texts(command: argparse.ArgumentParser, name: str) -> None:
    if name == "compare":
        command.add_argument("word", metavar="WORD", help="as it stands in each text, in any case")
    command.add_argument("text", nargs="*", metavar="TEXT", help="a text, as one argument")
    add = command.add_argument
    add("--input", type=_name, metavar="FILE", help="a text a line, UTF-8; - is the input")
    if name == "lens":
        page = "the page; one that is there is replaced; - is the output"
        add("-o", "--output", type=_name, metavar="PAGE", required=True, help=page)
        command.add_argument("--max-length", type=int, metavar="N", help="cut texts to N tokens")
        head = "what says [MASK]: auto (what config.json names, if it can be had; default)"
        heads = ["auto", "none", "masked-lm"]
        command.add_argument("--head", choices=heads, default="auto", help=head)
    if name == "fill":
        count = "how many candidates (default: 5, or all targets)"
        command.add_argument("--top-k", type=int, metavar="N", help=count)
        command.add_argument("--targets", type=_words, metavar="A,B", help="only these words")


def _add_bundle(command: argparse.ArgumentParser, name: str) -> None:
    is_new = name == "record"
    told = "where to" if is_new else "what minibert record wrote"
    command.add_argument("bundle", type=_name, metavar="FOLDER", help=told)
    if not is_new:
        command.add_argument("dump", type=_name, metavar="DUMP", help="safetensors, same names")


def _add_plot(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("kind", choices=["attention", "similarity", "senses", "layers"], help="what is drawn")
    add("what", nargs="+", metavar="ARG", help="a text, a word and texts, or a file; see above")
    head = "of attention: LAYER-HEAD, both from 1; in code attentions[LAYER - 1, HEAD - 1]"
    add("--head", type=_head, metavar="N-N", help=head)
    picture = "the picture, .png, .svg or .pdf; one that is there is replaced"
    add("-o", "--output", type=_name, metavar="PICTURE", required=True, help=picture)


def _add_model(command: argparse.ArgumentParser, name: str) -> None:
    default: str | None = DEFAULT_MODEL
    told = f"a name on the Hub, a folder, or minilm (default: {DEFAULT_MODEL})"
    if name == "names":
        told, default = "give the sizes of this model instead of letters", None
    elif name == "plot":
        default = None  # plot senses has no model; the others take this one
    elif name == "judge":
        told, default = "that of the record: then say which mistake it is", None
    command.add_argument("--model", default=default, help=told)
    command.add_argument("--revision", help="branch, tag or commit of a model on the Hub")
    command.add_argument(
        "--local-files-only", action="store_true", help="take the Hub's cache, ask the Hub nothing"
    )
    if name not in ("tokenize", "names"):
        pickle = "read pytorch_model.bin if there is no other"
        command.add_argument("--allow-pickle", action="store_true", help=pickle)
    if name in ("record", "live"):
        dtypes = ["float32", "float64"]
        command.add_argument("--dtype", choices=dtypes, default="float64", help="default: float64")
        told = f"with the logits of a head: auto (what config.json names) or {', '.join(HEADS)}"
        command.add_argument("--head", metavar="NAME", help=told)


def add_extract_options(command: argparse.ArgumentParser) -> None:
    """Say what can be asked of `minibert extract` besides texts and model."""
    add = command.add_argument
    add("--layers", type=_layers, default=-1, metavar="N,N", help=LAYERS_HELP)
    combine = """what is done with several layers: sum, mean, max, concat, stack (kept apart), or a
    weight for each, such as 0.5,0.5 (default: sum; for tables and JSON lines stack)"""
    add("--combine", type=_combine, metavar="HOW", help=combine)
    add("--unit", default="token", metavar="WHAT", help="token, word or sentence (default: token)")
    pooling = """from tokens to a word: mean, sum, max, first, last, first+last; to a sentence:
    mean, max, mean_sqrt_len, cls, pooler (default: what the model's folder says, else mean)"""
    add("--pooling", metavar="HOW", help=pooling)
    optional = argparse.BooleanOptionalAction
    add("--normalize", action=optional, help="divide each vector by its length")
    special = "count [CLS] and [SEP] as tokens, and into a sentence's mean (default: yes)"
    add("--special-tokens", action=optional, default=True, help=special)
    add("--field", metavar="NAME", help="the input is JSON lines: the field with the text")
    formats = ["table", "jsonl", "npy", "safetensors"]
    add("--format", choices=formats, help="instead of the usual one, or what the name says")
    add("--max-length", type=int, metavar="N", help="cut texts to N tokens")
    add("--device", default="cpu", help="such as cuda (default: cpu)")
    dtypes = ["float32", "float64", "float16", "bfloat16"]
    add("--dtype", choices=dtypes, default="float32", help="to compute in (default: float32)")
    add("--threads", type=int, metavar="N", help="how many to compute with (default: torch's)")
    _add_file_options(command)


def _add_file_options(command: argparse.ArgumentParser) -> None:
    files = command.add_argument_group(
        "from a file to a file",
        """--input FILE --output WHERE: nothing is padded, memory stays the same, and the same
        command goes on after an interruption. FILE may end with .gz or .zst.""",
    )
    add = files.add_argument
    where = "NAME.npy (--unit sentence), NAME.jsonl, or a folder for safetensors"
    add("--output", type=_name, metavar="WHERE", help=where)
    long = """of texts that are longer than the model reads: windows that overlap, truncate, error
    (default: windows)"""
    add("--long", metavar="HOW", help=long)
    add("--stride", type=int, metavar="N", help="tokens that two windows share (default: half)")
    add("--store-dtype", metavar="TYPE", help="float32 (default), float16 or bfloat16")
    add("--batch-tokens", type=int, metavar="N", help="tokens at once (default: 512 for bert-base)")
    add("--limit", type=int, metavar="N", help="read the first N lines only")
    existing = files.add_mutually_exclusive_group()
    for name, told in (
        ("resume", "only go on with an output that is there (else: begin if there is none)"),
        ("overwrite", "begin anew"),
    ):
        existing.add_argument(
            f"--{name}", dest="existing", action="store_const", const=name, help=told
        )


def file_options(options: argparse.Namespace) -> dict[str, Any]:
    """Those that were given of the options that only files have; a ValueError without --output."""
    given = {name: value for name in _OF_FILES if (value := getattr(options, name)) is not None}
    if options.output is None and given:
        name = next(iter(given))
        name = given[name] if name == "existing" else name.replace("_", "-")
        raise ValueError(f"--{name} goes with --output")
    if options.output is None and options.format in ("npy", "safetensors"):
        raise ValueError(f"--format {options.format} goes with --output")
    if options.output is not None and options.input is None:
        raise ValueError("--output goes with --input FILE")
    return given


def reading_options(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of Bert.reading."""
    name = str(options.output)
    is_json = options.format == "jsonl" or (options.format is None and name.endswith(".jsonl"))
    is_apart = isinstance(options.layers, list) and (options.output is None or is_json)
    return {
        "layers": options.layers,
        "combine": options.combine or ("stack" if is_apart else "sum"),
        "unit": options.unit,
        "pooling": options.pooling,
        "normalize": options.normalize,
        "special_tokens": options.special_tokens,
    }


def _name(text: str) -> str:
    if not text:  # which would mean the current folder
        raise argparse.ArgumentTypeError("expected a name, got ''")
    return text


def _words(text: str) -> list[str]:
    return text.split(",")


def _layers(text: str) -> int | list[int] | str:
    if text == "all":
        return text
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected numbers such as -1,-2, got {text!r}") from error
    return numbers if len(numbers) > 1 else numbers[0]


def _combine(text: str) -> str | list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        return text


def _head(text: str) -> tuple[int, int]:
    layer, _, head = text.partition("-")
    if not (layer.isdecimal() and head.isdecimal()):
        raise argparse.ArgumentTypeError(f"expected a layer and a head such as 3-8, got {text!r}")
    return int(layer), int(head)

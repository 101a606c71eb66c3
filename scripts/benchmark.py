"""Speed against the libraries that a user could pick instead, as ratios measured in one run.

    python scripts/benchmark.py load             a bert-base-sized folder, against transformers
    python scripts/benchmark.py capture          what it costs to keep all hidden states
    python scripts/benchmark.py tokenizer DATA   against tokenizers, on one core; DATA is a folder
                                                 with corpus.txt and vocab/bert-base-*.txt
    python scripts/benchmark.py extract DATA     vectors of --lines lines of corpus.txt in two
                                                 threads, against sentence-transformers (to be
                                                 installed beside), transformers and F.linear
    python scripts/benchmark.py finetune DATA    minilm on DATA/supersense.{train,dev}.tsv, against
                                                 transformers' model in a plain loop; compares
                                                 --compare losses, accuracy or speed

Ours and theirs are measured in turn, and the medians are given.
"""

import argparse
import copy
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

# Read when tokenizers starts: one core each for the tokenizers, two for whole extractions.
os.environ["TOKENIZERS_PARALLELISM"] = "true" if "extract" in sys.argv else "false"
os.environ["RAYON_NUM_THREADS"] = "2" if "extract" in sys.argv else "1"

import torch
from benchmark_training import benchmark_finetune
from safetensors.torch import save_file

from minibert.batches import fitting_tokens, mixed_states
from minibert.bert import Bert
from minibert.config import BertConfig
from minibert.extract import extract_file
from minibert.glossary import checkpoint_names
from minibert.hooks import capture
from minibert.hub import find_files
from minibert.job import Job
from minibert.loading import load, pack
from minibert.model import BertModel
from minibert.tokenizer import WordPieceTokenizer
from minibert.vectors import Reading
from minibert.vocabulary import read_vocabulary

LOADERS = {
    "minibert": "from minibert import load_model; load = load_model",
    "transformers": "from transformers import BertModel; load = BertModel.from_pretrained",
}

# torch is imported before the clock starts; what a library imports on top of it counts.
MEASURE = """
import re, sys, time
import torch
def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
memory, start = resident(), time.perf_counter()
{loader}
model = load(sys.argv[1])
print(time.perf_counter() - start, resident() - memory)
"""


def benchmark_load(runs: int) -> None:
    """Seconds and memory from `import torch` to a model that is ready, files in the page cache."""
    config = BertConfig()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        names = checkpoint_names(config)
        state = BertModel(config).state_dict()
        save_file(
            {names[own]: tensor for own, tensor in state.items()},
            folder / "model.safetensors",
            {"format": "pt"},
        )
        (folder / "config.json").write_text(json.dumps({"model_type": "bert", **asdict(config)}))
        size = (folder / "model.safetensors").stat().st_size
        print(f"loading {size / 1e6:.0f} MB, torch {torch.__version__}, {runs} runs each")
        figures: dict[str, list[tuple[float, float]]] = {library: [] for library in LOADERS}
        for _ in range(runs):
            for library, loader in LOADERS.items():
                code = MEASURE.format(loader=loader)
                printed = subprocess.run(
                    [sys.executable, "-c", code, name], capture_output=True, text=True, check=True
                ).stdout
                seconds, memory = map(float, printed.split())
                figures[library].append((seconds, memory / size))
    medians = {}
    for library, measured in figures.items():
        seconds, memory = (statistics.median(column) for column in zip(*measured, strict=True))
        medians[library] = seconds
        print(f"{library:13} {seconds:6.2f} s   memory {memory:4.2f} x the file")
    print(f"minibert takes {medians['minibert'] / medians['transformers']:.2f} of the time")


BATCH = 100  # lines to a call, results dropped after it, as when a corpus is read through

SCRIPTS = {
    "accented Latin": "àáâãäåæçèéêëìíîïðñòóôõöøùúûüýÿāăąćčďđēėęěğģīįıķļłńņňōőœŕřśşšťūůűųźżžơưạ",
    "Greek": "αβγδεζηθικλμνξοπρστυφχψωάέήίόύώς",
    "Arabic": "ابتثجحخدذرزسشصضطظعغفقكلمنهوي",
}


def made_up_text(pieces: list[str], letters: str | None, characters: int) -> list[str]:
    """Lines of words from a vocabulary, common ones often, in one script (None: Chinese)."""
    draw = random.Random(0)
    if letters is None:
        words = [piece for piece in pieces if len(piece) == 1 and "\u4e00" <= piece <= "\u9fff"]
    else:
        words = [p for p in pieces if not p.startswith(("##", "[")) and set(p) & set(letters)]
        ends = [p[2:] for p in pieces if p.startswith("##") and set(p) & set(letters)]
        words += [draw.choice(words) + draw.choice(ends) for _ in range(30_000)]
    weights = [1 / rank for rank in range(1, len(words) + 1)]  # Zipf's law
    lines = []
    while sum(map(len, lines[-1:])) * len(lines) < characters:
        drawn = draw.choices(words, weights, k=12 if letters else 40)
        joined = " ".join(drawn) if letters else "".join(drawn)
        lines += [f"{joined}." if letters else f"{joined}。" for _ in range(1)]
    return lines


def benchmark_tokenizer(data: Path, runs: int) -> None:
    """MB of UTF-8 a second, to lists of ids and to encodings with all their lists."""
    corpus = (data / "corpus.txt").read_text("utf-8").split("\n")
    multilingual = read_vocabulary(data / "vocab" / "bert-base-multilingual-cased.txt")
    chinese = read_vocabulary(data / "vocab" / "bert-base-chinese.txt")
    measure_tokenizer("English, corpus.txt", data / "vocab/bert-base-uncased.txt", corpus, runs)
    for name, letters in SCRIPTS.items():
        lines = made_up_text(multilingual, letters, 2_000_000)
        measure_tokenizer(name, data / "vocab/bert-base-multilingual-cased.txt", lines, runs)
    lines = made_up_text(chinese, None, 2_000_000)
    measure_tokenizer("Chinese", data / "vocab/bert-base-chinese.txt", lines, runs)


def measure_tokenizer(name: str, vocab: Path, lines: list[str], runs: int) -> None:
    """Compare on one text and print a line for each kind of result."""
    from transformers import BertTokenizer

    lowercase = "uncased" in vocab.name
    size = sum(len(line.encode()) + 1 for line in lines)
    theirs = BertTokenizer(str(vocab), do_lower_case=lowercase).backend_tokenizer

    def their_ids(batch: list[str]) -> object:
        return [encoding.ids for encoding in theirs.encode_batch_fast(batch)]

    def their_encodings(batch: list[str]) -> object:
        return [
            (e.ids, e.type_ids, e.attention_mask, e.tokens, e.offsets, e.word_ids)
            + (e.special_tokens_mask,)
            for e in theirs.encode_batch(batch)
        ]

    speeds: dict[str, list[float]] = {}

    def run(kind: str, encode: Callable[[list[str]], object]) -> None:
        start = time.perf_counter()
        for begin in range(0, len(lines), BATCH):
            encode(lines[begin : begin + BATCH])
        speeds.setdefault(kind, []).append(size / (time.perf_counter() - start) / 1e6)

    for _ in range(runs):
        ours = WordPieceTokenizer.from_file(vocab, lowercase)
        run("ids, cold", ours.encode_ids)
        run("ids, theirs", their_ids)
        run("ids, warm", ours.encode_ids)
        ours = WordPieceTokenizer.from_file(vocab, lowercase)
        run("encodings, cold", ours.encode_batch)
        run("encodings, theirs", their_encodings)
        run("encodings, warm", ours.encode_batch)
    for kind in ("ids", "encodings"):
        cold, warm, rival = (
            statistics.median(speeds[f"{kind}, {which}"]) for which in ("cold", "warm", "theirs")
        )
        print(
            f"{name:20} {kind:10} minibert {cold:5.2f} MB/s cold {warm:5.2f} warm, tokenizers "
            f"{rival:5.2f} MB/s: {cold / rival:.2f} x cold, {warm / rival:.2f} x warm"
        )


def benchmark_capture(runs: int) -> None:
    """Time of a pass through a model whose states are captured, by that of one whose are not."""
    plain = load("minilm").model
    watched = copy.deepcopy(plain)
    for batch, tokens in ((1, 12), (1, 128), (32, 32)):
        ids = torch.randint(1000, 20_000, (batch, tokens))
        seconds: dict[str, list[float]] = {"plain": [], "watched": [], "placing": []}
        with torch.inference_mode(), capture(watched, "hidden_states"):
            for _ in range(20 * runs):
                start = time.perf_counter()
                plain(ids)
                middle = time.perf_counter()
                watched(ids)
                end = time.perf_counter()
                with capture(plain, "hidden_states"):
                    pass
                seconds["placing"].append(time.perf_counter() - end)
                seconds["watched"].append(end - middle)
                seconds["plain"].append(middle - start)
        without, captured, placing = map(statistics.median, seconds.values())
        print(
            f"minilm, {batch:2} x {tokens:3} tokens: {without * 1e3:7.2f} ms, all states captured "
            f"{captured * 1e3:7.2f} ms: {captured / without - 1:+.1%}; to place and remove the "
            f"hooks, once for any number of passes, {placing * 1e3:.2f} ms"
        )


COMMANDS = {
    "minibert": [
        sys.executable,
        "-c",
        "import sys; from minibert.cli import main; main(['extract', '--model', *sys.argv[1:]])",
    ],
    "transformers": [
        sys.executable,
        "-c",
        """
import sys, torch
from transformers import AutoTokenizer, BertModel
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = BertModel.from_pretrained(sys.argv[1])
with torch.inference_mode():
    print(model(**tokenizer(sys.argv[2], return_tensors="pt")).last_hidden_state[0].tolist())
""",
    ],
}
SENTENCE = "What are the elements in a real BERT word?"  # 12 tokens with [CLS] and [SEP]


def benchmark_extract(data: Path, lines: int, runs: int) -> None:
    """Speed from lines to vectors, for minilm and for a bert-base of random weights."""
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as name:
        text, base = Path(name) / "text", Path(name) / "base"
        corpus = (data / "corpus.txt").read_text("utf-8").split("\n")[:lines]
        text.write_text("\n".join(corpus), "utf-8")
        write_bert_base(base, data / "vocab" / "bert-base-uncased.txt")
        minilm = find_files("minilm").folder
        for folder in (minilm, base):
            if folder is not None:
                measure_extract(folder, text, runs)


def write_bert_base(folder: Path, vocab: Path) -> None:
    """A model of the released shape; draws are as good as trained weights for speed."""
    folder.mkdir()
    config = BertConfig()
    names, state = checkpoint_names(config), BertModel(config).state_dict()
    tensors = {names[own]: tensor for own, tensor in state.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", **asdict(config)}))
    (folder / "tokenizer_config.json").write_text(
        '{"do_lower_case": true, "model_max_length": 512, "tokenizer_class": "BertTokenizer"}'
    )
    (folder / "vocab.txt").write_bytes(vocab.read_bytes())


def interleave(contenders: dict[str, Callable[[], object]], runs: int) -> dict[str, float]:
    """Median seconds of each, measured in turn after a first round that does not count.

    The order is drawn for each round: what one leaves to the machine hits another each time.
    """
    draw, names = random.Random(0), list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(runs + 1):
        for name in draw.sample(names, len(names)):
            start = time.perf_counter()
            contenders[name]()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(measured) for name, measured in seconds.items()}


def measure_extract(folder: Path, text: Path, runs: int) -> None:
    """Compare for one model, and print a line for each bar of the project."""
    from sentence_transformers import SentenceTransformer
    from transformers import AutoTokenizer
    from transformers import BertModel as TheirModel

    sentences = text.read_text("utf-8").split("\n")
    bert = load(folder)
    half = load(folder, dtype=torch.bfloat16)
    rival = SentenceTransformer(str(folder), device="cpu")
    their_model = TheirModel.from_pretrained(folder).eval()
    their_tokenizer = AutoTokenizer.from_pretrained(folder)

    def ours(bert: Bert, reading: Reading, name: str) -> object:
        job = Job(str(text), str(text.with_name(name)), reading)
        return extract_file(bert, job, existing="overwrite")

    def compute_alone() -> object:
        encodings = bert.tokenizer.encode_batch(sentences)
        return sum(1 for _ in mixed_states(bert.model, encodings, Reading()))

    def in_batches(order: list[int]) -> None:
        with torch.inference_mode():
            for begin in range(0, len(order), 32):
                batch = [sentences[n] for n in order[begin : begin + 32]]
                inputs = their_tokenizer(
                    batch, padding=True, truncation=True, max_length=512, return_tensors="pt"
                )
                states = their_model(**inputs).last_hidden_state
                mask = inputs["attention_mask"][:, :, None]
                ((states * mask).sum(1) / mask.sum(1)).numpy()

    def by_length() -> None:
        lengths = [len(ids) for ids in their_tokenizer(sentences)["input_ids"]]
        in_batches(sorted(range(len(sentences)), key=lengths.__getitem__, reverse=True))

    every_state = Reading(list(range(bert.config.num_hidden_layers + 1)), "stack")
    sentence = Reading(unit="sentence")
    multiply = matrix_products(bert.config)
    seconds = interleave(
        {
            # In memory, as the rivals; then from a file to a file, which none of them does.
            "minibert": lambda: bert.vectors(sentences, unit="sentence", pooling="mean"),
            "minibert bfloat16": lambda: half.vectors(sentences, unit="sentence", pooling="mean"),
            "minibert, file to .npy": lambda: ours(bert, sentence, "out.npy"),
            "sentence-transformers": lambda: rival.encode(sentences, show_progress_bar=False),
            "transformers, sorted": by_length,
            "transformers, as they come": lambda: in_batches(list(range(len(sentences)))),
            "F.linear": multiply,
            "computing alone": compute_alone,
            "every state stored": lambda: ours(bert, every_state, "every"),
        },
        runs,
    )
    lengths = [len(encoding) for encoding in bert.tokenizer.encode_batch(sentences)]
    print_speeds(folder.name, bert.config, lengths, seconds, multiply())
    print_bfloat16_errors(bert, half, sentences[:100])
    measure_one(folder, bert, their_model, their_tokenizer, runs)


def print_speeds(
    name: str, config: BertConfig, lengths: list[int], seconds: dict[str, float], flops: int
) -> None:
    """A line for each contender, as a multiple of ours and as a share of what the machine does."""
    print(f"{name}: {len(lengths)} lines, {sum(lengths)} tokens")
    for name, measured in seconds.items():
        if name != "F.linear":
            rate, times = sum(lengths) / measured, measured / seconds["minibert"]
            print(f"{name:27} {rate:7.0f} tokens/s: {times:5.2f} x the time of minibert")
    peak = flops / seconds["F.linear"]
    for name in ("minibert", "minibert bfloat16", "minibert, file to .npy", "computing alone"):
        share = useful_flops(config, lengths) / seconds[name] / peak
        print(f"{name:27} {share:.0%} of the float32 rate of F.linear, {peak / 1e9:.0f} GFLOP/s")
    more = seconds["every state stored"] / seconds["computing alone"] - 1
    print(f"storing every state costs {more:+.0%} over computing alone")


def matrix_products(config: BertConfig) -> Callable[[], int]:
    """The products of a layer at the size of our batches, some times; gives their FLOPs."""
    wide, inner, rows = config.hidden_size, config.intermediate_size, fitting_tokens(config)
    shapes = [(wide, wide)] * 4 + [(inner, wide), (wide, inner)]
    weights = [torch.randn(shape) for shape in shapes]
    inputs = {width: torch.randn(rows, width) for width in (wide, inner)}

    def multiply(times: int = 20) -> int:
        with torch.inference_mode():
            for _ in range(times):
                for weight in weights:
                    torch.nn.functional.linear(inputs[weight.shape[1]], weight)
        return times * 2 * rows * sum(weight.numel() for weight in weights)

    return multiply


def useful_flops(config: BertConfig, lengths: list[int]) -> int:
    """Of the products with weights, and of attention's two; no padding, no pooler."""
    wide, inner = config.hidden_size, config.intermediate_size
    of_token = 2 * (4 * wide * wide + 2 * wide * inner)
    of_text = [length * of_token + 4 * length * length * wide for length in lengths]
    return config.num_hidden_layers * sum(of_text)


def print_bfloat16_errors(bert: Bert, half: Bert, sentences: list[str]) -> None:
    """By state: the size of the difference by the size of the states."""
    layers = list(range(bert.config.num_hidden_layers + 1))
    exact = bert.vectors(sentences, layers, "stack").vectors
    apart = half.vectors(sentences, layers, "stack").vectors - exact
    ratios = ((apart**2).sum((0, 2)) / (exact**2).sum((0, 2))) ** 0.5
    print("bfloat16, relative error by state:", *(f"{ratio:.4f}" for ratio in ratios))


def measure_one(
    folder: Path, bert: Bert, their_model: Any, their_tokenizer: Any, runs: int
) -> None:
    """One short sentence: with the model at hand, and with a process of its own."""

    def theirs() -> None:
        with torch.inference_mode():
            their_model(**their_tokenizer(SENTENCE, return_tensors="pt"))

    if len(bert.tokenizer.encode(SENTENCE)) != 12:
        raise ValueError(f"{SENTENCE!r} is not of 12 tokens")
    packed = pack(bert)
    contenders = {
        "minibert": lambda: bert.vectors(SENTENCE),
        "minibert, packed": lambda: packed.vectors(SENTENCE),
        "transformers": theirs,
    }
    for name, measured in (one := interleave(contenders, 40 * runs)).items():
        ratio = measured / one["transformers"]
        print(f"one sentence of 12 tokens, {name:17} {measured * 1e3:6.2f} ms: {ratio:.2f} x")

    def process(name: str) -> Callable[[], object]:
        command = [*COMMANDS[name], str(folder), SENTENCE]
        return lambda: subprocess.run(command, capture_output=True, check=True)

    whole = interleave({name: process(name) for name in COMMANDS}, runs)
    ratio = whole["minibert"] / whole["transformers"]
    print(
        f"the command, start to vectors: {whole['minibert']:.2f} s, transformers "
        f"{whole['transformers']:.2f} s: {ratio:.2f} of the time\n"
    )


def main() -> None:
    """Run the benchmark that is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["load", "capture", "tokenizer", "extract", "finetune"])
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--lines", type=int, default=3000)
    parser.add_argument("--compare", choices=["losses", "accuracy", "speed"], default="speed")
    options = parser.parse_args()
    if options.what == "load":
        benchmark_load(options.runs)
    elif options.what == "capture":
        benchmark_capture(options.runs)
    elif options.data is None:
        parser.error(f"{options.what} is measured on DATA")
    elif options.what == "extract":
        benchmark_extract(options.data, options.lines, options.runs)
    elif options.what == "finetune":
        benchmark_finetune(options.data, options.compare, options.runs)
    else:
        benchmark_tokenizer(options.data, options.runs)


if __name__ == "__main__":
    main()

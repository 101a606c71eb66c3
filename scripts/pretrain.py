"""Pre-train a BERT on texts of one's own, from nothing but the texts.

    python scripts/pretrain.py vocabulary TEXTS --size 8000 --output pieces
    python scripts/pretrain.py instances TEXTS --tokenizer pieces --output instances
    python scripts/pretrain.py train instances --layers 2 --hidden 128 --output tiny

TEXTS are files (plain, .gz or .zst) or folders of them: a sentence a line, a blank line between
documents. Memory does not grow with them. `instances` and `train` go on where they were killed, if
they are given once more. `train` writes OUTPUT/model in the Hub's layout, its checkpoint and log in
OUTPUT/run, and OUTPUT/loss.png; under `torchrun --nproc-per-node N` several processes share each
step. The defaults are those of [D18] appendix A.2. With --start a model that has both heads is
trained further.
"""

import argparse
import dataclasses
import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import torch

import minibert
from minibert.heads import BertWithHead
from minibert.hub import load_tokenizer
from minibert.instance_files import Instances, write_instances
from minibert.instances import Recipe
from minibert.lamb import lamb
from minibert.lines import Lines
from minibert.normalizer import Normalizer
from minibert.plan import Plan, adamw
from minibert.pretraining import evaluate, loss, steps
from minibert.tokenizer import WordPieceTokenizer
from minibert.training import Task, processes, train
from minibert.vocabulary_training import count_words, train_vocabulary, write_tokenizer

try:
    from minibert.plots import plot_training
except ImportError:  # the extra "plot"
    plot_training = None

HELP = {
    "max_length": "tokens of an instance",
    "masked_share": "of the tokens, to be predicted",
    "most_masked": "tokens to be predicted",
    "short_share": "of the documents, cut into shorter instances",
    "copies": "of each document, with other pairs and masks",
}


def find_texts(names: list[str]) -> list[str]:
    """The files, and all files of the folders, which have an order."""
    found: list[str] = []
    for path in map(Path, names):
        if not path.exists():
            raise ValueError(f"there is no file or folder {path}")
        inside = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        found += map(str, inside)
    if not found:
        raise ValueError(f"there is no file in {', '.join(names)}")
    return found


def read_lines(names: list[str]) -> Iterator[str]:
    """All lines of all files."""
    for name in names:
        with closing(Lines(name)) as lines:
            yield from lines


def make_vocabulary(options: argparse.Namespace) -> None:
    """Write a tokenizer: vocab.txt and tokenizer_config.json."""
    uncased = not options.cased
    normalizer = Normalizer(uncased, strip_accents=uncased, tokenize_chinese_chars=True)
    counts = count_words(read_lines(find_texts(options.texts)), normalizer)
    pieces = train_vocabulary(counts, options.size)
    write_tokenizer(WordPieceTokenizer(pieces, lowercase=uncased), options.output)
    print(f"{options.output}: {len(pieces)} pieces from {len(counts)} different words")
    if len(pieces) < options.size:
        print(f"fewer than {options.size}: no other two pieces stand side by side twice")


def make_instances(options: argparse.Namespace) -> None:
    """Write instances, and say what there is."""
    recipe = Recipe(
        **{field.name: getattr(options, field.name) for field in dataclasses.fields(Recipe)}
    )
    texts, tokenizer = find_texts(options.texts), load_tokenizer(options.tokenizer)
    write_instances(texts, tokenizer, recipe, options.seed, options.output)
    made = Instances(options.output)
    print(
        f"{options.output}: {len(made)} instances of {made.tokens / len(made):.1f} tokens, "
        f"{made.to_predict / made.tokens:.1%} of them to be predicted; "
        f"{made.random_next / len(made):.1%} with a random next sentence; unigram entropy "
        f"{made.unigram_entropy:.4f} nats"
    )


OF_NEW = ("layers", "hidden", "heads", "positions", "dropout", "initializer_range")


def new_model(options: argparse.Namespace, instances: Instances) -> minibert.Bert:
    """A model with both heads, as it is before the first step."""
    tokenizer = instances.tokenizer
    if options.start is not None:
        for name in OF_NEW:
            if getattr(options, name) != options.default_of(name):
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} is of a new model; with --start it plays no part")
        bert = minibert.load(options.start, head="pretraining")
        if bert.tokenizer.vocabulary != tokenizer.vocabulary:
            raise ValueError(f"{options.start} has another vocabulary than the instances")
        if bert.config.max_position_embeddings < instances.recipe.max_length:
            raise ValueError(f"the instances are longer than {options.start} reads")
        return bert
    torch.manual_seed(options.seed)
    config = minibert.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads or max(1, options.hidden // 64),
        intermediate_size=4 * options.hidden,
        max_position_embeddings=options.positions or instances.recipe.max_length,
        hidden_dropout_prob=options.dropout,
        attention_probs_dropout_prob=options.dropout,
        initializer_range=options.initializer_range,
        pad_token_id=tokenizer.special_ids["[PAD]"],
    )
    bert = minibert.Bert(config, tokenizer, minibert.BertModel(config))
    return minibert.new_head(bert, "pretraining")


def train_model(options: argparse.Namespace) -> None:
    """Train, evaluate, save, and draw the curve."""
    instances = Instances(options.instances)
    held_out = Instances(options.evaluate) if options.evaluate else None
    bert = new_model(options, instances)
    local = os.environ.get("LOCAL_RANK", "0")  # of several processes each has a GPU of its own
    place = options.device or (f"cuda:{local}" if torch.cuda.is_available() else "cpu")
    try:
        model = BertWithHead(bert.model, bert.head).to(place)
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch without CUDA
        raise ValueError(f"device {place!r} cannot be used here: {error}") from error
    optimizer = {"adamw": adamw, "lamb": lamb}[options.optimizer](model, options.weight_decay)
    micro_batch = min(options.micro_batch, options.batch_size)
    source = steps(instances, options.batch_size, micro_batch, options.seed)
    config = bert.config  # of which this is what the weights do not show
    identity = (
        f"{instances.identity} in batches of {options.batch_size}, {micro_batch} at once, seed "
        f"{options.seed}; {config.num_attention_heads} heads, {config.hidden_act}, dropout "
        f"{config.hidden_dropout_prob} and {config.attention_probs_dropout_prob}"
    )
    judge = partial(evaluate, model, held_out, micro_batch) if held_out else None
    names = {field.name for field in dataclasses.fields(Plan)}
    plan = Plan(**{name: value for name, value in vars(options).items() if name in names})
    with processes() as (rank, _):
        train(Task(model, loss, source, identity, judge), optimizer, plan, options.output / "run")
        if rank == 0:
            model.cpu().eval()
            minibert.save(bert, options.output / "model")
            report(options.output, held_out)


def report(folder: Path, held_out: Instances | None) -> None:
    """Say how good the model is, and how good one is that knows no more than frequencies."""
    text = (folder / "run" / "log.jsonl").read_text().splitlines()
    log = list(map(json.loads, text))
    losses = [(line["step"], line["loss"]) for line in log if "loss" in line]
    print(f"{folder}: loss {losses[0][1]:.4f} at step 1, {losses[-1][1]:.4f} at {losses[-1][0]}")
    tried = [(line["step"], line["evaluation"]) for line in log if "evaluation" in line]
    for step, found in tried:
        print(
            f"step {step:6}  " + "  ".join(f"{name} {value:.4f}" for name, value in found.items())
        )
    if held_out:
        print(f"unigram entropy {held_out.unigram_entropy:.4f}, log 2 = {math.log(2):.4f}")
    if plot_training is None:
        print("no curve: pip install matplotlib")
        return
    axes = plot_training(line for line, entry in zip(text, log, strict=True) if "loss" in entry)
    if held_out:
        masked = [(step, found["masked_lm"]) for step, found in tried]
        entropy = held_out.unigram_entropy
        axes.plot(*zip(*masked, strict=True), "o-", color="#D55E00", label="masked LM, held out")
        axes.axhline(entropy, color="#009E73", linestyle="--", label="unigram entropy")
        axes.legend(frameon=False)
    axes.figure.savefig(folder / "loss.png", dpi=150)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    shown = argparse.ArgumentDefaultsHelpFormatter
    own = commands.add_parser("vocabulary", help="make a tokenizer", formatter_class=shown)
    own.set_defaults(run=make_vocabulary)
    own.add_argument("texts", nargs="+")
    own.add_argument("--output", type=Path, required=True, help="a folder")
    own.add_argument("--size", type=int, default=30000, help="pieces")
    own.add_argument("--cased", action="store_true", help="keep capitals and accents")
    own = commands.add_parser("instances", help="make instances", formatter_class=shown)
    own.set_defaults(run=make_instances)
    own.add_argument("texts", nargs="+")
    own.add_argument("--output", type=Path, required=True, help="a folder")
    own.add_argument("--tokenizer", required=True, help="a folder, or a name on the Hub")
    own.add_argument("--seed", type=int, default=12345)
    for field in dataclasses.fields(Recipe):
        flag = f"--{field.name.replace('_', '-')}"
        if field.type is bool:
            own.add_argument(flag, action="store_true", help="mask words, not pieces")
        else:
            own.add_argument(flag, type=field.type, default=field.default, help=HELP[field.name])
    add_training(commands.add_parser("train", help="train a model", formatter_class=shown))
    return parser.parse_args(arguments)


def add_training(own: argparse.ArgumentParser) -> None:
    """The options of `train`."""
    own.set_defaults(run=train_model, default_of=own.get_default)
    own.add_argument("instances", help="a folder that `instances` wrote")
    own.add_argument("--output", type=Path, required=True, help="a folder")
    own.add_argument("--evaluate", help="a folder of instances that are held out")
    own.add_argument("--start", help="a folder or name on the Hub to train further; sizes are its")
    own.add_argument("--device", help="cuda if there is one, or cpu, if not given")
    own.add_argument(
        "--optimizer", choices=("adamw", "lamb"), default="adamw", help="lamb for large batches"
    )
    own.add_argument("--bfloat16", action="store_true", help="compute in it")
    for flag, default, told in (
        ("layers", 12, "L"),
        ("hidden", 768, "H"),
        ("heads", None, "A; H / 64 if it is not given"),
        ("positions", None, "tokens that the model reads; those of the instances, if not given"),
        ("batch-size", 256, "instances of a step, of all processes together"),
        ("micro-batch", 32, "instances that one process computes at once"),
        ("steps", 1_000_000, ""),
        ("warmup", 10_000, "steps"),
        ("seed", 0, "of weights, dropout and order"),
        ("evaluate-every", 10_000, "steps"),
        ("save-every", 1_000, "steps"),
    ):
        own.add_argument(f"--{flag}", type=int, default=default, help=told or "how many")
    for flag, number, told in (
        ("learning-rate", 1e-4, "the highest, after warm-up"),
        ("weight-decay", 0.01, "not of biases and LayerNorms"),
        ("dropout", 0.1, "also of attention"),
        ("initializer-range", 0.02, "standard deviation of the first weights"),
    ):
        own.add_argument(f"--{flag}", type=float, default=number, help=told)


def main(arguments: list[str] | None = None) -> None:
    """Run a command; what goes wrong is told in one line."""
    options = parse(arguments)
    try:
        options.run(options)
    except (OSError, ValueError, FloatingPointError, minibert.CheckpointError) as error:
        sys.exit(f"pretrain.py: {error}")
    except KeyboardInterrupt:  # the same command goes on
        sys.exit(130)


if __name__ == "__main__":
    main()

"""Fine-tune a BERT on a task of your own. Needs the extra train: pip install -e '.[train]'.

    python scripts/finetune.py classify train.tsv dev.tsv OUT --model minilm
    python scripts/finetune.py regress train.csv dev.csv OUT --text a --pair b --label score
    python scripts/finetune.py classify RTE/train.tsv RTE/dev.tsv OUT --glue rte
    python scripts/finetune.py tag train.conll dev.conll OUT
    python scripts/finetune.py answer train-v2.0.json dev-v2.0.json OUT --max-length 384

OUT/model is the tuned model in the Hub's layout, for `minibert.load(..., head="auto")` and for
transformers. OUT/run/log.jsonl has the loss of every step and the metrics of every evaluation.
Killed, the same command goes on, to the same weights. On several processes:
`torchrun --nproc-per-node 2 scripts/finetune.py ...`; --batch-size is of all of them together.

    python scripts/finetune.py tag train.conll dev.conll --frozen --layers=-4,-3,-2,-1

trains nothing of BERT: a logistic regression on vectors of chosen layers, as in [D18] table 7.
"""

import argparse
import hashlib
import json
import logging
import math
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import metrics
import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from minibert.bert import Bert
from minibert.config import CheckpointError
from minibert.examples import GLUE, Columns, numbers, read_conll, read_squad, read_table
from minibert.features import (
    Feature,
    check_known,
    class_numbers,
    classes,
    question_features,
    tag_features,
    text_features,
)
from minibert.finetuning import best_answer, collate, grouped, loss_of, predict, steps_per_epoch
from minibert.heads import BertWithHead
from minibert.loading import load, new_head
from minibert.plan import Plan, adamw
from minibert.saving import save
from minibert.training import Task, processes, train

Metrics = dict[str, float]


class Lesson(NamedTuple):
    """What is to be learnt: the model with its head, the features, and how to judge."""

    bert: Bert
    train: list[Feature]
    dev: list[Feature]
    evaluate: Callable[[BertWithHead], Metrics]
    watch: str  # the metric that tells what is best


def classify(bert: Bert, options: argparse.Namespace) -> Lesson:
    """Classes of texts or pairs."""
    first, second = (read_table(path, columns(options)) for path in (options.train, options.dev))
    labels = classes([example.label for example in first], str(options.train))
    bert = new_head(bert, "sequence-classification", labels)
    learnt, dev = (
        text_features(bert.tokenizer, rows, class_numbers(labels, rows), options.max_length)
        for rows in (first, second)
    )

    def evaluate(model: BertWithHead) -> Metrics:
        predicted = [int(logits.argmax()) for logits in predict(model, dev)]
        return metrics.of_classes([int(row.label) for row in dev], predicted, len(labels))

    return Lesson(bert, learnt, dev, evaluate, "accuracy")


def regress(bert: Bert, options: argparse.Namespace) -> Lesson:
    """A number for each text or pair."""
    first, second = (read_table(path, columns(options)) for path in (options.train, options.dev))
    bert = new_head(bert, "sequence-classification", ["number"], "regression")
    learnt, dev = (
        text_features(bert.tokenizer, rows, numbers(rows), options.max_length)
        for rows in (first, second)
    )

    def evaluate(model: BertWithHead) -> Metrics:
        predicted = [float(logits[0]) for logits in predict(model, dev)]
        return metrics.of_numbers([float(feature.label) for feature in dev], predicted)

    return Lesson(bert, learnt, dev, evaluate, "pearson")


def tag(bert: Bert, options: argparse.Namespace) -> Lesson:
    """A tag for each word."""
    first, second = read_conll(options.train), read_conll(options.dev)
    tags = classes([tag for row in first for tag in row.tags], str(options.train))
    bert = new_head(bert, "token-classification", tags)
    learnt, dev = (
        tag_features(bert.tokenizer, rows, tags, options.max_length) for rows in (first, second)
    )

    def evaluate(model: BertWithHead) -> Metrics:
        # A word without a piece, all of control characters, has no logits, and counts as O.
        found = [["O"] * len(sentence.words) for sentence in second]
        for feature, logits in zip(dev, predict(model, dev), strict=True):
            for word, number in zip(feature.places, logits.argmax(-1), strict=True):
                if word >= 0:
                    found[feature.example][word] = tags[number]
        return metrics.of_tags([sentence.tags for sentence in second], found, tags)

    return Lesson(bert, learnt, dev, evaluate, "accuracy")


def answer(bert: Bert, options: argparse.Namespace) -> Lesson:
    """Where in a text the answer to a question stands, if it does."""
    first, second = read_squad(options.train), read_squad(options.dev)
    bert = new_head(bert, "question-answering")
    learnt, dev = (
        question_features(bert.tokenizer, rows, options.max_length, options.stride)
        for rows in (first, second)
    )
    may_be_none = any(not question.answers for question in first)

    def evaluate(model: BertWithHead) -> Metrics:
        best = defaultdict(lambda: (-math.inf, ""))
        none = defaultdict(lambda: math.inf)  # [D18] section 4.3: S C + E C, in the best window
        for feature, logits in zip(dev, predict(model, dev), strict=True):
            number, start, end = feature.example, logits[:, 0], logits[:, 1]
            score, i, j = best_answer(start, end, feature.places[:, 0] >= 0, 30)
            text = second[number].context[feature.places[i, 0] : feature.places[j, 1]]
            best[number] = max(best[number], (score, text))
            none[number] = min(none[number], float(start[0] + end[0]))
        found = [
            "" if may_be_none and none[n] > best[n][0] else best[n][1] for n in range(len(second))
        ]
        right = [[text for text, _ in question.answers] for question in second]
        return metrics.of_answers(right, found)

    return Lesson(bert, learnt, dev, evaluate, "f1")


# What plays no part: with --frozen, and without it.
OF_TRAINING = (
    *("epochs", "batch_size", "accumulate", "learning_rate", "warmup", "weight_decay"),
    *("max_length", "seed", "bfloat16", "evaluate_every", "save_every", "patience", "plot"),
)
OF_FROZEN = ("layers", "combine")
TASKS = {"classify": classify, "regress": regress, "tag": tag, "answer": answer}


def columns(options: argparse.Namespace) -> Columns:
    """Where a table has what."""
    asked = Columns(options.text, options.pair, options.label)
    if options.glue and asked != Columns():
        raise ValueError("--glue says which columns there are: leave --text, --pair, --label out")
    return GLUE[options.glue] if options.glue else asked


def fingerprint(lesson: Lesson, options: argparse.Namespace, parts: int) -> str:
    """What a checkpoint must agree with, beside what `train` looks at itself."""
    head = lesson.bert.head
    settings = lesson.bert.config, head and head.config  # the weights do not show all of these
    digest = hashlib.sha256(repr(settings).encode())
    for part in (lesson.train, lesson.dev):
        for feature in part:
            for array in (feature.input_ids, np.array(feature.second), feature.label):
                digest.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    told = f"in batches of {options.batch_size}, {parts} parts, seed {options.seed}"
    return f"{digest.hexdigest()[:16]} {told}"


def finetune(options: argparse.Namespace, rank: int, world: int) -> None:
    """Train, evaluate and save."""
    torch.manual_seed(options.seed)  # of the new head
    bert = load(options.model, device=options.device)
    most = bert.config.max_position_embeddings
    if options.max_length is None:
        options.max_length = min(384 if options.task == "answer" else 128, most)
    elif options.max_length > most:
        told = f"--max-length {options.max_length} is more than the {most} tokens"
        raise ValueError(f"{told} that the model reads")
    lesson = TASKS[options.task](bert, options)
    model = BertWithHead(lesson.bert.model, lesson.bert.head)
    device = next(model.parameters()).device
    # A step has the same micro-batches however many processes share them, if it has enough.
    parts = -(-max(options.accumulate, world) // world) * world
    lengths = [len(feature.input_ids) for feature in lesson.train]
    per_epoch = steps_per_epoch(len(lengths), options.batch_size)
    steps = max(1, round(options.epochs * per_epoch))

    def loss(_: nn.Module, rows: Sequence[int]) -> tuple[Tensor, int]:
        return loss_of(model, collate([lesson.train[n] for n in rows], device))

    def batches(start: int) -> Iterator[list[list[int]]]:
        return grouped(lengths, options.batch_size, parts, options.seed, start)

    plan = Plan(
        steps,
        options.learning_rate,
        round(options.warmup * steps),
        seed=options.seed,
        bfloat16=options.bfloat16,
        evaluate_every=options.evaluate_every or per_epoch,
        save_every=options.save_every or per_epoch,
        watch=lesson.watch,
        patience=options.patience,
    )
    evaluate = lambda: lesson.evaluate(model)  # noqa: E731
    task = Task(model, loss, batches, fingerprint(lesson, options, parts), evaluate)
    step = train(task, adamw(model, options.weight_decay), plan, options.output / "run")
    if rank == 0:
        save(lesson.bert, options.output / "model")
        found = {name: round(value, 4) for name, value in evaluate().items()}
        print(json.dumps({"step": step, **found}))
        if options.plot:
            from minibert.plots import plot_training  # the extra plot

            lines = (options.output / "run" / "log.jsonl").read_text().splitlines()
            plot_training(lines).figure.savefig(options.output / "loss.png", bbox_inches="tight")


def frozen(options: argparse.Namespace) -> None:
    """Train a logistic regression on vectors of BERT, which stays as it is: [D18] section 5.3."""
    if options.task not in ("classify", "tag"):
        raise ValueError(f"--frozen is for classify and tag, not {options.task}")
    bert = load(options.model, device=options.device)
    asked = [int(n) for n in options.layers.split(",")] if options.layers != "all" else "all"
    vectors, labels = [], []
    for path in (options.train, options.dev):
        if options.task == "classify":
            rows: Any = read_table(path, columns(options))
            texts = [row.text if row.pair is None else (row.text, row.pair) for row in rows]
            read = bert.vectors(texts, asked, options.combine, "sentence")
            labels.append([row.label for row in rows])
        else:
            rows = read_conll(path)
            texts = [row.words for row in rows]
            read = bert.vectors(texts, asked, options.combine, "word", "first")
            labels.append([tag for row in rows for tag in row.tags])
        vectors.append(read.vectors)
    known = classes(labels[0], str(options.train))
    classifier = LogisticRegression(max_iter=1000).fit(vectors[0], labels[0])
    predicted = classifier.predict(vectors[1]).tolist()
    if options.task == "classify":
        check_known(known, [(row.place, row.label) for row in rows])
        found = metrics.of_classes(
            *(list(map(known.index, side)) for side in (labels[1], predicted)), len(known)
        )
    else:
        check_known(known, [(row.place(n), tag) for row in rows for n, tag in enumerate(row.tags)])
        flat = iter(predicted)
        found = metrics.of_tags(
            [row.tags for row in rows], [list(islice(flat, len(row.tags))) for row in rows], known
        )
    print(json.dumps({name: round(value, 4) for name, value in found.items()}))


def parse() -> argparse.Namespace:
    """What is asked for on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("task", choices=TASKS)
    add("train", type=Path)
    add("dev", type=Path)
    add("output", type=Path, nargs="?", help="a folder; not with --frozen")
    add("--model", default="google-bert/bert-base-uncased")
    add("--glue", choices=GLUE, help="which task of GLUE the files are of")
    add("--text", default="text", help="the column of the text (default: text)")
    add("--pair", help="the column of the second text, if there is one")
    add("--label", default="label", help="the column of the label (default: label)")
    add("--epochs", type=float, default=3.0)
    add("--batch-size", type=int, default=32, help="examples in a step (default: 32)")
    add("--accumulate", type=int, default=1, help="micro-batches to a step (default: 1)")
    add("--learning-rate", type=float, default=5e-5)
    add("--warmup", type=float, default=0.1, help="share of the steps (default: 0.1)")
    add("--weight-decay", type=float, default=0.01)
    add("--max-length", type=int, help="tokens of a text or window (default: 128; answer: 384)")
    add("--stride", type=int, default=128, help="tokens that windows of a context share")
    add("--seed", type=int, default=0)
    add("--bfloat16", action="store_true", help="compute in bfloat16 where torch thinks it safe")
    add("--evaluate-every", type=int, default=0, help="steps (default: once an epoch)")
    add("--save-every", type=int, default=0, help="steps (default: once an epoch)")
    add("--patience", type=int, default=0, help="stop after so many evaluations without a best one")
    add("--device", help="default: cuda if there is one, or cpu")
    add("--plot", action="store_true", help="draw OUT/loss.png; needs the extra plot")
    add("--frozen", action="store_true", help="train a classifier on BERT's vectors alone")
    add("--layers", default="-4,-3,-2,-1", help="with --frozen: which states, or all")
    add("--combine", default="concat", help="with --frozen: concat, sum, mean or max")
    options = parser.parse_args()
    check(parser, options)
    if options.plot:
        try:
            import_module("minibert.plots")  # now, as after hours it would be late
        except ImportError:
            parser.error("--plot needs the extra plot: pip install matplotlib")
    if options.device is None:
        local = os.environ.get("LOCAL_RANK", "0")
        options.device = f"cuda:{local}" if torch.cuda.is_available() else "cpu"
    return options


def check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Whether the options go together; else the parser says what does not, and exits."""
    if options.frozen == (options.output is not None):
        parser.error("give OUT, or --frozen, which writes nothing")
    idle = [*(OF_TRAINING if options.frozen else OF_FROZEN)]
    idle += ["glue", "text", "pair", "label"] if options.task in ("tag", "answer") else []
    idle += [] if options.task == "answer" else ["stride"]
    for name in idle:
        if getattr(options, name) != parser.get_default(name):
            told = f"{options.task} with{'' if options.frozen else 'out'} --frozen"
            parser.error(f"--{name.replace('_', '-')} plays no part in {told}")
    for name in ("batch_size", "accumulate", "epochs"):
        if not 0 < getattr(options, name) < math.inf:
            parser.error(f"--{name.replace('_', '-')} must be more than 0 and finite")
    if not 0 <= options.warmup <= 1:
        parser.error("--warmup must be from 0 to 1")


def main() -> None:
    """Run; what the user can mend is one line on stderr."""
    options = parse()
    logging.basicConfig(format="%(message)s")
    try:
        if options.frozen:
            frozen(options)
        else:
            with processes() as (rank, world):
                finetune(options, rank, world)
    except (ValueError, CheckpointError, FloatingPointError) as error:
        sys.exit(f"finetune.py: {error}")
    except KeyboardInterrupt:  # the same command goes on
        sys.exit(130)


if __name__ == "__main__":
    main()

"""The part of benchmark.py that trains: minilm on 32 classes of definitions, here and elsewhere.

The rival is transformers' model from the same weights, in the loop that its users write: a batch is
padded to its longest text, and the optimizer is torch's fastest.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from minibert.bert import Bert
from minibert.examples import Columns, read_table
from minibert.features import Feature, class_numbers, classes, text_features
from minibert.finetuning import collate, grouped, loss_of, predict, steps_per_epoch
from minibert.heads import BertWithHead
from minibert.loading import load, new_head
from minibert.plan import Plan, adamw
from minibert.saving import save
from minibert.training import Task, train

RATE, EPOCHS, SIZE, LONGEST = 2e-4, 4, 32, 128
STEPS = 80  # of a comparison of speeds


@dataclass
class Lesson:
    """What both learn, and from which weights."""

    bert: Bert  # with a fresh head
    examples: list[Any]
    labels: list[int]
    dev: list[Any]
    dev_labels: list[int]

    @classmethod
    def read(cls, data: Path) -> "Lesson":
        """Read the files; the head is drawn from seed 0."""
        first, second = (
            read_table(data / f"supersense.{name}.tsv", Columns()) for name in ("train", "dev")
        )
        names = classes([row.label for row in first], "supersense.train.tsv")
        torch.manual_seed(0)
        bert = new_head(load("minilm"), "sequence-classification", names)
        return cls(bert, first, class_numbers(names, first), second, class_numbers(names, second))

    def features(self, count: int) -> list[Feature]:
        """Of the first examples."""
        rows, labels = self.examples[:count], self.labels[:count]
        return text_features(self.bert.tokenizer, rows, labels, LONGEST)


def train_ours(lesson: Lesson, plan: Plan, count: int) -> list[float]:
    """Train on the first examples, as scripts/finetune.py does; gives the losses."""
    features = lesson.features(count)
    lengths = [len(feature.input_ids) for feature in features]
    model = BertWithHead(lesson.bert.model, lesson.bert.head)
    cpu = torch.device("cpu")
    task = Task(
        model,
        lambda _, rows: loss_of(model, collate([features[n] for n in rows], cpu)),
        lambda start: grouped(lengths, SIZE, start=start),
        "supersense",
    )
    with tempfile.TemporaryDirectory() as folder:
        train(task, adamw(model), plan, folder)
        log = (Path(folder) / "log.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in log]


class Rival:
    """transformers' model, optimizer and schedule."""

    def __init__(self, bert: Bert, plan: Plan) -> None:
        from transformers import (
            AutoTokenizer,
            BertForSequenceClassification,
            get_linear_schedule_with_warmup,
        )

        with tempfile.TemporaryDirectory() as folder:
            save(bert, Path(folder) / "model")
            self.tokenizer = AutoTokenizer.from_pretrained(Path(folder) / "model")
            self.model = BertForSequenceClassification.from_pretrained(Path(folder) / "model")
        named = list(self.model.named_parameters())
        plain = [p for name, p in named if "bias" in name or "LayerNorm" in name]
        decayed = [p for name, p in named if not ("bias" in name or "LayerNorm" in name)]
        groups = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, plan.learning_rate, eps=1e-6, fused=True)
        self.schedule = get_linear_schedule_with_warmup(self.optimizer, plan.warmup, plan.steps)
        self.clip = plan.clip

    def inputs(self, rows: list[Any]) -> Any:
        """Texts as tensors, padded to the longest."""
        texts = [row.text for row in rows]
        return self.tokenizer(
            texts, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt"
        )

    def train(self, lesson: Lesson, batches: Iterator[list[int]]) -> list[float]:
        """Gives the losses."""
        losses = []
        self.model.train()
        for batch in batches:
            labels = torch.tensor([lesson.labels[n] for n in batch])
            loss = self.model(
                **self.inputs([lesson.examples[n] for n in batch]), labels=labels
            ).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad()
            losses.append(float(loss.detach()))
        return losses

    def accuracy(self, lesson: Lesson) -> float:
        """On the dev file."""
        self.model.eval()
        right = []
        with torch.inference_mode():
            for begin in range(0, len(lesson.dev), SIZE):
                logits = self.model(**self.inputs(lesson.dev[begin : begin + SIZE])).logits
                labels = lesson.dev_labels[begin : begin + SIZE]
                right += (logits.argmax(-1) == torch.tensor(labels)).tolist()
        return statistics.mean(right)


def our_batches(lesson: Lesson, count: int) -> Iterator[list[int]]:
    """Of one step after the other, without end."""
    lengths = [len(feature.input_ids) for feature in lesson.features(count)]
    return (step[0] for step in grouped(lengths, SIZE))


def compare_losses(lesson: Lesson) -> None:
    """Of 50 steps, from the same weights on the same batches, without dropout."""
    plan, count = Plan(50, RATE, 5), len(lesson.examples)
    rival = Rival(lesson.bert, plan)
    for model in (lesson.bert.model, lesson.bert.head, rival.model):
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    ours = train_ours(lesson, plan, count)
    theirs = rival.train(lesson, islice(our_batches(lesson, count), plan.steps))
    apart = max(abs(one - other) for one, other in zip(ours, theirs, strict=True))
    print(
        f"{plan.steps} steps without dropout, from loss {ours[0]:.4f} to {ours[-1]:.4f}: "
        f"at most {apart:.1e} from transformers'"
    )


def compare_accuracy(lesson: Lesson) -> None:
    """After the same epochs on the same batches, each with its own dropout."""
    count = len(lesson.examples)
    steps = EPOCHS * steps_per_epoch(count, SIZE)
    plan = Plan(steps, RATE, steps // 10)
    rival = Rival(lesson.bert, plan)
    start = time.perf_counter()
    train_ours(lesson, plan, count)
    middle = time.perf_counter()
    rival.train(lesson, islice(our_batches(lesson, count), steps))
    end = time.perf_counter()
    dev = text_features(lesson.bert.tokenizer, lesson.dev, lesson.dev_labels, LONGEST)
    logits = predict(BertWithHead(lesson.bert.model, lesson.bert.head), dev)
    right = [int(row.argmax()) == n for row, n in zip(logits, lesson.dev_labels, strict=True)]
    ours, theirs = statistics.mean(right), rival.accuracy(lesson)
    error = (theirs * (1 - theirs) / len(dev)) ** 0.5
    print(
        f"{steps} steps, then {len(dev)} dev texts: accuracy {ours:.3f} after "
        f"{middle - start:.0f} s, transformers {theirs:.3f} after {end - middle:.0f} s; "
        f"the standard error is {error:.3f}"
    )


def compare_speed(lesson: Lesson, runs: int) -> None:
    """Texts a second: lengths that go together, against batches as they are drawn."""
    plan, count = Plan(STEPS, RATE, STEPS // 10), STEPS * SIZE
    rival = Rival(lesson.bert, Plan(STEPS * (runs + 1), RATE))
    draws = torch.Generator().manual_seed(0)

    def shuffled() -> Iterator[list[int]]:
        order = torch.randperm(count, generator=draws).tolist()
        return (order[begin : begin + SIZE] for begin in range(0, count, SIZE))

    contenders: dict[str, Callable[[], object]] = {
        "minibert": lambda: train_ours(lesson, plan, count),
        "transformers": lambda: rival.train(lesson, shuffled()),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for run in range(runs + 1):  # the first does not count
        for name, contend in contenders.items():
            start = time.perf_counter()
            contend()
            if run:
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(measured) for name, measured in seconds.items()}
    for name, median in medians.items():
        print(f"{name:13} {count / median:6.0f} texts/s, {STEPS} steps of {SIZE} in {median:.1f} s")
    ratio = medians["transformers"] / medians["minibert"]
    print(f"minibert trains {ratio:.2f} x as fast as a plain loop")


def benchmark_finetune(data: Path, compare: str, runs: int) -> None:
    """Losses step by step, accuracy in the end, or speed."""
    lesson = Lesson.read(data)
    if compare == "losses":
        compare_losses(lesson)
    elif compare == "accuracy":
        compare_accuracy(lesson)
    else:
        compare_speed(lesson, runs)

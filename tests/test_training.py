"""The loop, on models small enough to be trained a dozen times."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ODD, random_batch, random_model, their_model
from torch import Tensor, nn
from torch.nn import functional as F

from minibert.config import CheckpointError
from minibert.plan import Plan, adamw
from minibert.training import Task, train

TRAINER = Path(__file__).parent / "data" / "train_a_little.py"
PLAN = Plan(12, 1e-3, 3, evaluate_every=4, save_every=2)

Rows = Sequence[int]


def examples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(64, 6, generator=generator)
    return inputs, (inputs[:, 0] * inputs[:, 1] > 0).long()


def network(dropout: float = 0.1) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Linear(6, 16), nn.LayerNorm(16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 2)
    )


def small_task(model: nn.Module, parts: int = 1, evaluations: list[float] | None = None) -> Task:
    """Tell whether two numbers have one sign, from random rows, each step in so many parts."""
    inputs, labels = examples()

    def loss(model: nn.Module, rows: Rows) -> tuple[Tensor, int]:
        return F.cross_entropy(model(inputs[rows]), labels[rows], reduction="sum"), len(rows)

    def batches(start: int) -> Iterator[list[Rows]]:
        for step in range(start, 100):
            rows = random.Random(step).sample(range(64), 12)
            yield [rows[part::parts] for part in range(parts)]

    def evaluate() -> dict[str, float]:
        assert not model.training
        assert torch.is_inference_mode_enabled()
        if evaluations is not None:
            return {"score": evaluations.pop(0)}
        return {"loss": float(F.cross_entropy(model(inputs), labels))}

    return Task(model, loss, batches, "the data", evaluate)


def run(folder: Path, plan: Plan = PLAN, parts: int = 1, dropout: float = 0.1) -> nn.Module:
    model = network(dropout)
    assert train(small_task(model, parts), adamw(model), plan, folder) == plan.steps
    return model


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in log(folder) if "loss" in line]


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_a_run_and_its_log(tmp_path: Path) -> None:
    model = run(tmp_path)
    lines = log(tmp_path)
    assert [(line["step"], sorted(line)[0]) for line in lines if "loss" not in line] == [
        (4, "evaluation"),
        (8, "evaluation"),
        (12, "evaluation"),
    ]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 13))
    assert [line["learning_rate"] for line in lines if "loss" in line][:5] == pytest.approx(
        [0.0, 1e-3 / 3, 2e-3 / 3, 1e-3, 1e-3 * 8 / 9]
    )
    assert lines[0]["loss"] > lines[-1]["evaluation"]["loss"]
    assert not model.training
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.pt", "log.jsonl"}


def test_a_seed_gives_the_same_bits(tmp_path: Path) -> None:
    first, second = run(tmp_path / "a"), run(tmp_path / "b")
    assert same(first, second)
    other = run(tmp_path / "c", replace(PLAN, seed=1))
    assert not same(first, other)  # or dropout was off
    assert (tmp_path / "a/log.jsonl").read_bytes() == (tmp_path / "b/log.jsonl").read_bytes()


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    first = run(tmp_path)
    before = (tmp_path / "checkpoint.pt").stat().st_mtime_ns
    assert same(first, run(tmp_path))
    assert (tmp_path / "checkpoint.pt").stat().st_mtime_ns == before


def test_accumulation_is_one_large_batch(tmp_path: Path) -> None:
    """In parts of 3, 3, 2, 2 and 2 examples: a mean of means would be another loss."""
    whole = run(tmp_path / "whole", dropout=0)
    parts = run(tmp_path / "parts", parts=5, dropout=0)
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), abs=1e-6)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5)  # Adam makes much of small gradients


@pytest.mark.parametrize("parts", [2, 3])
def test_two_processes_are_one(tmp_path: Path, parts: int) -> None:
    """With dropout, too, and where one has a micro-batch more."""
    (tmp_path / "alone").mkdir()
    commands = [[], ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]]
    for name, launcher in zip(("alone", "both"), commands, strict=True):
        command = [sys.executable, *launcher, str(TRAINER), str(tmp_path / name), str(parts)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        result = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=120
        )
        assert result.returncode == 0, result.stderr[-2000:]
    alone, both = log(tmp_path / "alone"), log(tmp_path / "both")
    assert [line["step"] for line in both] == [line["step"] for line in alone]
    assert losses(tmp_path / "both") == pytest.approx(losses(tmp_path / "alone"), abs=1e-6)
    assert len(losses(tmp_path / "both")) == 60


def test_killed_at_any_moment(tmp_path: Path) -> None:
    """Again and again, until it ends: the bits and the log of a run that was not disturbed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(TRAINER), str(tmp_path / "whole"), "2"]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    command[2] = str(tmp_path / "killed")
    draw, kills = random.Random(0), 0
    while kills < 6:
        process = subprocess.Popen([*command, "slowly"], env=environment, stderr=subprocess.PIPE)
        path, seen = tmp_path / "killed" / "log.jsonl", 0
        while process.poll() is None and seen < 1:
            time.sleep(0.01)
            seen = len(path.read_bytes()) if path.exists() else 0
        time.sleep(draw.uniform(0.0, 0.3))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += 1
    assert kills >= 2
    subprocess.run(command, check=True, env=environment, capture_output=True)
    for name in ("log.jsonl", "weights.pt"):
        whole, killed = (tmp_path / run / name for run in ("whole", "killed"))
        assert whole.read_bytes() == killed.read_bytes(), name


class _Stop(Exception):
    pass


@pytest.mark.parametrize("stop", [1, 3, 5, 11])
def test_an_interrupted_run_goes_on(tmp_path: Path, stop: int) -> None:
    whole = run(tmp_path / "whole")
    model = network()
    task = small_task(model)

    def until(start: int) -> Iterator[list[Rows]]:
        for step, parts in enumerate(task.batches(start), start):
            if step == stop:
                raise _Stop
            yield list(parts)

    with pytest.raises(_Stop):
        train(task._replace(batches=until), adamw(model), PLAN, tmp_path / "stopped")
    assert same(whole, run(tmp_path / "stopped"))
    logs = [(tmp_path / name / "log.jsonl").read_bytes() for name in ("whole", "stopped")]
    assert logs[0] == logs[1]


def other(what: str) -> tuple[nn.Module, Task, Plan, float]:
    model = network()
    if what == "weights":
        with torch.no_grad():
            model[0].bias[0] += 1e-6
    task = small_task(model)
    if what == "data":
        task = task._replace(data="other data")
    plan = replace(PLAN, learning_rate=2e-3) if what == "learning_rate" else PLAN
    return model, task, plan, 0.1 if what == "optimizer" else 0.01


@pytest.mark.parametrize("what", ["weights", "data", "learning_rate", "optimizer"])
def test_a_checkpoint_of_another_run(tmp_path: Path, what: str) -> None:
    run(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    model, task, plan, decay = other(what)
    with pytest.raises(CheckpointError, match=f"is of another run: its {what} is ") as caught:
        train(task, adamw(model, decay), plan, tmp_path)
    assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("where", ["loss", "gradient's norm"])
def test_not_a_number(tmp_path: Path, where: str) -> None:
    """Stops before the weights are touched, and keeps the checkpoint of step 6."""
    model = network(0)
    task = small_task(model)
    calls = [0]

    def broken(model: nn.Module, rows: Rows) -> tuple[Tensor, int]:
        total, count = task.loss(model, rows)
        calls[0] += 1
        if calls[0] == 8:
            bad = total * float("inf") if where == "loss" else (total * 0).sqrt() + total
            return bad, count
        return total, count

    told = rf"^the {where} of step 8 is (inf|nan); .*checkpoint.pt is kept; take a lower"
    with pytest.raises(FloatingPointError, match=told):
        train(task._replace(loss=broken), adamw(model), PLAN, tmp_path)
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    assert [line["step"] for line in log(tmp_path) if "loss" in line] == list(range(1, 8))
    run_on = network(0)  # with a loss that is right again it goes on from there
    assert train(small_task(run_on), adamw(run_on), PLAN, tmp_path) == 12
    assert same(run_on, run(tmp_path / "whole", dropout=0))


def test_early_stopping_takes_the_best(tmp_path: Path) -> None:
    plan = replace(PLAN, evaluate_every=2, watch="score", patience=2)
    scores = [0.1, 0.5, 0.4, 0.5, 0.9]
    model = network()
    assert train(small_task(model, evaluations=scores), adamw(model), plan, tmp_path) == 4
    assert scores == [0.9]
    assert log(tmp_path)[-1] == {"step": 8, "evaluation": {"score": 0.5}}
    again = network()  # it is over, and stays over
    assert train(small_task(again, evaluations=[]), adamw(again), plan, tmp_path) == 4
    assert same(model, again)
    short = network()
    train(small_task(short), adamw(short), replace(PLAN, steps=12, save_every=1), tmp_path / "b")
    best = torch.load(tmp_path / "best.pt")["model"]
    assert torch.equal(best["0.weight"], model.state_dict()["0.weight"])


def test_the_loss_is_best_when_it_is_least(tmp_path: Path) -> None:
    model = network()
    plan = Plan(12, 1e-3, evaluate_every=2, patience=3)
    assert train(small_task(model), adamw(model), plan, tmp_path) == 12


def test_a_metric_that_is_not_there(tmp_path: Path) -> None:
    model = network()
    with pytest.raises(ValueError, match=re.escape("no metric f1 to watch; there is ['loss']")):
        train(small_task(model), adamw(model), replace(PLAN, watch="f1"), tmp_path)


def test_batches_that_end_too_early(tmp_path: Path) -> None:
    model = network()
    with pytest.raises(ValueError, match="the batches ended after step 100, before 200"):
        train(small_task(model), adamw(model), Plan(200), tmp_path)


def test_bfloat16_is_near(tmp_path: Path) -> None:
    run(tmp_path / "a", dropout=0)
    half = run(tmp_path / "b", replace(PLAN, bfloat16=True), dropout=0)
    assert next(half.parameters()).dtype == torch.float32
    assert losses(tmp_path / "a") != losses(tmp_path / "b")
    assert losses(tmp_path / "a") == pytest.approx(losses(tmp_path / "b"), abs=0.02)


def test_clipping(tmp_path: Path) -> None:
    """A gradient of norm 1e6 moves plain descent by no more than rate times clip."""
    model = nn.Linear(6, 2, bias=False)
    before = model.weight.detach().clone()
    task = small_task(model)

    def steep(model: nn.Module, rows: Rows) -> tuple[Tensor, int]:
        total, count = task.loss(model, rows)
        return total * 1e6, count

    optimizer = torch.optim.SGD(model.parameters())
    train(task._replace(loss=steep), optimizer, Plan(1, 0.5, clip=0.3), tmp_path)
    assert float((model.weight.detach() - before).norm()) == pytest.approx(0.15, rel=1e-4)


def test_each_micro_batch_has_its_own_dropout(tmp_path: Path) -> None:
    drawn: list[float] = []
    model = network()
    task = small_task(model, parts=3)

    def loss(model: nn.Module, rows: Rows) -> tuple[Tensor, int]:
        drawn.append(float(torch.rand(1)))
        return task.loss(model, rows)

    train(task._replace(loss=loss), adamw(model), Plan(4), tmp_path)
    assert len(set(drawn)) == len(drawn) == 12


@pytest.mark.parametrize("parts", [1, 5])
def test_the_gradient_is_that_of_the_mean(tmp_path: Path, parts: int) -> None:
    """Plain descent shows its length, which Adam and clipping would hide."""
    model = network(0)
    task = small_task(model, parts)
    inputs, labels = examples()
    rows = [n for part in next(iter(small_task(model).batches(0))) for n in part]
    mean = F.cross_entropy(model(inputs[rows]), labels[rows])
    gradients = torch.autograd.grad(mean, list(model.parameters()))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    train(task, torch.optim.SGD(model.parameters()), Plan(1, 1.0, clip=1e6), tmp_path)
    assert losses(tmp_path)[0] == pytest.approx(float(mean.detach()), abs=1e-6)
    for old, gradient, new in zip(before, gradients, model.parameters(), strict=True):
        torch.testing.assert_close(new.detach(), old - gradient, rtol=0, atol=1e-6)


def test_the_curve_of_transformers(tmp_path: Path) -> None:
    """Ten steps of their BertModel under torch's AdamW as their examples call it, in float64."""
    transformers = pytest.importorskip("transformers")
    ours = random_model(replace(ODD, hidden_dropout_prob=0, attention_probs_dropout_prob=0))
    ours = ours.double()
    theirs = their_model(ours).double()
    target = torch.randn(5, ODD.hidden_size, generator=torch.Generator().manual_seed(2)).double()
    batch = random_batch(ODD, 5, 9)

    def loss(model: nn.Module, _: object) -> tuple[Tensor, int]:
        return ((model(*batch).pooler_output - target) ** 2).mean() * 5, 5

    task = Task(ours, loss, lambda start: [[None]] * (10 - start), "")
    train(task, adamw(ours), Plan(10, 1e-3, 2), tmp_path)
    named = list(theirs.named_parameters())
    groups = [
        {"params": [p for n, p in named if not re.search("bias|LayerNorm", n)]},
        {"params": [p for n, p in named if re.search("bias|LayerNorm", n)], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, eps=1e-6, weight_decay=0.01)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, 2, 10)
    curve = []
    for _ in range(10):
        ids, segments, mask = batch
        output = theirs(ids, token_type_ids=segments, attention_mask=mask)
        mean = ((output.pooler_output - target) ** 2).mean()
        optimizer.zero_grad()
        mean.backward()
        nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        curve.append(float(mean.detach()))
    assert losses(tmp_path) == pytest.approx(curve, abs=1e-10)
    assert curve[-1] < 0.9 * curve[0]

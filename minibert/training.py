"""The one training loop, for fine-tuning and for pre-training: any step can be had again.

A step is a list of micro-batches, whose gradients are summed; `torchrun` deals them out to its
processes. All that a step depends on follows from its number, the seed and the weights: the source
of batches can begin at any step, and the dropout of micro-batch m of step n is drawn from (seed, n,
m). So a run that was killed goes on as if it had not been, and the number of processes changes
nothing but rounding. Read next: examples.py.
"""

import hashlib
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.optim import Optimizer
from tqdm import tqdm  # type: ignore[import-untyped]

from minibert.journal import Journal
from minibert.plan import Plan, rate


class Task(NamedTuple):
    """What is trained, on what, and how good it is."""

    model: nn.Module
    # (model, micro-batch) -> the sum of the losses of its examples, with a gradient; their number.
    loss: Callable[[nn.Module, Any], tuple[Tensor, int]]
    # First step, counted from 0 -> from there on, for each step its micro-batches: the same for the
    # same step, wherever it began.
    batches: Callable[[int], Iterable[Sequence[Any]]]
    data: str  # tells these batches from others; a checkpoint of others is refused
    evaluate: Callable[[], dict[str, float]] | None = None  # with the model in eval mode


@contextmanager
def processes() -> Iterator[tuple[int, int]]:
    """Join the others that torchrun started: (number of this process, how many); else (0, 1)."""
    if distributed.is_torchelastic_launched():
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield _here()
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def _here() -> tuple[int, int]:
    if distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def train(task: Task, optimizer: Optimizer, plan: Plan, folder: str | os.PathLike[str]) -> int:
    """Train a model, or go on where an earlier call with the same arguments was stopped.

    Args:
        task: what to train. Every process has the same weights and batches.
        optimizer: of the model's parameters.
        plan: the rest.
        folder: for checkpoint.pt, best.pt and log.jsonl, of which each line is {"step": 1,
            "loss": mean of the step's examples, "learning_rate": ...} or {"step": 1, "evaluation":
            {...}}; seen by all processes, written by the first.

    Returns:
        The step that the model is of now: the last, or the best if there is patience. The model is
        in eval mode.

    Raises:
        FloatingPointError: if a loss or gradient is not finite; the weights are those of the step
            before, and the last checkpoint is kept.
        ValueError: if the batches end too early, or there is no metric of the watched name.
        CheckpointError: if the folder has a checkpoint of another run, or a file in it is broken or
            cannot be written.
    """
    rank, _ = _here()
    with closing(Journal(Path(folder), writes=rank == 0)) as journal:
        run = _Run(task, optimizer, plan, journal)
        left = 0 if run.is_over() else plan.steps - run.step
        is_hidden = rank > 0 or not sys.stderr.isatty()
        with tqdm(total=plan.steps, initial=run.step, disable=is_hidden) as bar:
            for micro_batches in islice(task.batches(run.step) if left else (), left):
                bar.set_postfix(loss=f"{run.advance(micro_batches):.4f}", refresh=False)
                bar.update()
                if run.is_over():
                    break
        if not run.is_over():
            raise ValueError(f"the batches ended after step {run.step}, before {plan.steps}")
        return run.finish()


class _Run:
    """Where a training is; begins where the journal ends."""

    def __init__(self, task: Task, optimizer: Optimizer, plan: Plan, journal: Journal) -> None:
        self.step = 0  # how many are done
        self._task, self._optimizer, self._plan, self._journal = task, optimizer, plan, journal
        self._rank, self._world = _here()
        self._best, self._best_step, self._waited = math.nan, 0, 0
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._identity = {
            "weights": _fingerprint(task.model),
            "data": task.data,
            "optimizer": _describe(optimizer),
            **asdict(plan),
        }
        saved = journal.resume(self._identity)
        if saved is not None:
            task.model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            self.step = saved["step"]
            self._best, self._best_step, self._waited = saved["best"]
        task.model.train()

    def is_over(self) -> bool:
        """Whether there is no step to come."""
        return self.step == self._plan.steps or 0 < self._plan.patience <= self._waited

    def advance(self, micro_batches: Sequence[Any]) -> float:
        """One step; gives its loss."""
        learning_rate = rate(self._plan, self.step)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        loss = self._gradient(micro_batches)
        self._optimizer.step()
        self.step += 1
        self._journal.write({"step": self.step, "loss": loss, "learning_rate": learning_rate})
        if self._is_due(self._plan.evaluate_every) and self._task.evaluate is not None:
            self._evaluate(self._task.evaluate)
        if self._is_due(self._plan.save_every) or self.is_over():
            self._save()
        return loss

    def finish(self) -> int:
        """Take the best weights if there is patience; gives the step that they are of."""
        self._task.model.eval()
        if not self._plan.patience or not self._best_step:
            return self.step
        if self._world > 1:
            distributed.barrier()  # until the first has written it
        self._task.model.load_state_dict(self._journal.best())
        return self._best_step

    def _is_due(self, every: int) -> bool:
        return self.step == self._plan.steps or (every > 0 and self.step % every == 0)

    def _gradient(self, micro_batches: Sequence[Any]) -> float:
        """Leave the gradient of the step's mean loss in the parameters, clipped; gives the loss."""
        self._optimizer.zero_grad()
        device = self._parameters[0].device
        losses, count = [], 0
        for number in range(self._rank, len(micro_batches), self._world):
            torch.manual_seed(_draw(self._plan.seed, self.step, number))
            with torch.autocast(device.type, torch.bfloat16, enabled=self._plan.bfloat16):
                loss, examples = self._task.loss(self._task.model, micro_batches[number])
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
            count += examples
        sums = torch.tensor([math.fsum(map(float, losses)), count], dtype=torch.float64)
        if self._world > 1:
            sums = sums.to(device)
            distributed.all_reduce(sums)
            _sum_gradients(self._parameters)
        total, count = sums.tolist()
        mean = total / count if count else math.nan
        self._check_finite("loss", mean)
        for parameter in self._parameters:
            if parameter.grad is not None:
                parameter.grad /= count
        norm = nn.utils.clip_grad_norm_(self._parameters, self._plan.clip)
        self._check_finite("gradient's norm", float(norm))
        return mean

    def _check_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            path = self._journal.checkpoint
            kept = f"{path} is kept" if path.exists() else "there was no checkpoint yet"
            raise FloatingPointError(
                f"the {what} of step {self.step + 1} is {value}; {kept}; take a lower learning "
                "rate, and another folder"
            )

    def _evaluate(self, evaluate: Callable[[], dict[str, float]]) -> None:
        """On the first process; the others are told."""
        told: list[dict[str, float]] = [{}]
        if self._rank == 0:
            self._task.model.eval()
            with torch.inference_mode():
                told = [evaluate()]
            self._task.model.train()
        if self._world > 1:
            distributed.broadcast_object_list(told)
        metrics, watched = told[0], self._plan.watch
        self._journal.write({"step": self.step, "evaluation": metrics})
        if watched not in metrics:
            raise ValueError(f"there is no metric {watched} to watch; there is {sorted(metrics)}")
        value = metrics[watched]
        is_better = value < self._best if watched == "loss" else value > self._best
        self._waited += 1
        if is_better or math.isnan(self._best):
            self._best, self._best_step, self._waited = value, self.step, 0
            if self._plan.patience:
                self._journal.save_best(self._task.model.state_dict())

    def _save(self) -> None:
        state = {
            "step": self.step,
            "best": (self._best, self._best_step, self._waited),
            "model": self._task.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }
        self._journal.save(self._identity, state)


def _sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Add up the gradients of all processes, of which one may have none for a parameter.

    By hand, not by DistributedDataParallel: that takes the mean over processes, however much each
    had to do, and wants a micro-batch for each.
    """
    has = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8)
    has = has.to(parameters[0].device)
    distributed.all_reduce(has, distributed.ReduceOp.MAX)
    trained = [p for p, has_gradient in zip(parameters, has.tolist(), strict=True) if has_gradient]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    parts = torch.split(flat, [p.numel() for p in trained])
    for parameter, part in zip(trained, parts, strict=True):
        parameter.grad = part.view_as(parameter)


def _draw(seed: int, step: int, number: int) -> int:
    """A seed for the dropout of one micro-batch."""
    digest = hashlib.sha256(f"{seed} {step} {number}".encode()).digest()
    return int.from_bytes(digest[:4], "little")


def _fingerprint(model: nn.Module) -> str:
    """Of the weights with which a run begins."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _describe(optimizer: Optimizer) -> str:
    options = [
        {name: value for name, value in group.items() if name not in ("params", "lr")}
        for group in optimizer.param_groups
    ]
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    return f"{type(optimizer).__name__} of {sizes} tensors, {options}"

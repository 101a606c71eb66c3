"""Several batches through one model at once: a core for each, so that no core waits for another.

torch can share one batch among the cores, but then they meet after every operation, and all wait
for the last one. Bulk work has batches enough to give each core its own. Read next: batches.py.
"""

import copy
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

import torch

from minibert.kernels import has_hooks
from minibert.model import BertModel

# At most so many batches at once, which bounds the memory; a worker may have several cores.
MOST_WORKERS = 4

Batch = TypeVar("Batch")
Result = TypeVar("Result")


def run_batches(
    model: BertModel,
    batches: Sequence[Batch],
    run: Callable[[BertModel, Batch], Result],
    workers: int,
) -> Iterator[tuple[Batch, Result]]:
    """Run batches, in so many threads that share torch's cores, and give their results in order.

    Args:
        model: in eval mode. Each thread has modules of its own, which share its parameters, so that
            a capture sees one batch alone.
        batches: what is run.
        run: computes one batch. It runs in the caller's thread, with the model itself, if there is
            one worker.
        workers: as `count_workers` says.

    Yields:
        (batch, what run gave).
    """
    if workers == 1:
        for batch in batches:
            yield batch, run(model, batch)
        return
    work = _on_copies(model, run, workers)
    threads = torch.get_num_threads()  # of this thread; a worker sets its own number
    pool = ThreadPoolExecutor(
        workers, "minibert", torch.set_num_threads, (max(1, threads // workers),)
    )
    waiting: deque[tuple[Batch, Future[Result]]] = deque()
    try:
        for batch in batches:
            waiting.append((batch, pool.submit(work, batch)))
            if len(waiting) > workers:  # one more than they work on, so that none is idle
                yield _first(waiting)
        while waiting:
            yield _first(waiting)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # for threads that start from now on


def _on_copies(
    model: BertModel, run: Callable[[BertModel, Batch], Result], count: int
) -> Callable[[Batch], Result]:
    """The same as `run`, for so many threads."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    models: SimpleQueue[BertModel] = SimpleQueue()
    for _ in range(count):
        models.put(copy.deepcopy(model, dict(shared)))

    def work(batch: Batch) -> Result:
        own = models.get()
        try:
            return run(own, batch)
        finally:
            models.put(own)

    return work


def _first(waiting: deque[tuple[Batch, Future[Result]]]) -> tuple[Batch, Result]:
    batch, future = waiting.popleft()
    return batch, future.result()


def count_workers(model: BertModel, batches: int) -> int:
    """How many batches at once: one if the model runs on another device, or under autocast.

    Hooks, which people place in their own thread and for passes one after the other, see them so:
    with a hook on the model there is one worker, too.
    """
    is_plain = (
        batches > 1
        and model.embeddings.word.weight.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and not has_hooks(model)
    )
    return min(torch.get_num_threads(), batches, MOST_WORKERS) if is_plain else 1

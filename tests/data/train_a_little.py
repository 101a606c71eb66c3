"""python train_a_little.py FOLDER PARTS [slowly]: 60 steps of a tiny model; leaves weights.pt."""

import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from test_training import network, small_task

from minibert.plan import Plan, adamw
from minibert.training import processes, train


def slow(model: torch.nn.Module, rows: list[int]) -> tuple[torch.Tensor, int]:
    time.sleep(0.005)
    return small_task(model).loss(model, rows)


def main() -> None:
    folder, parts = Path(sys.argv[1]), int(sys.argv[2])
    model = network()
    task = small_task(model, parts)
    if "slowly" in sys.argv:
        task = task._replace(loss=slow)
    with processes() as (rank, _):
        train(task, adamw(model), Plan(60, 1e-3, 10, evaluate_every=7, save_every=3), folder)
        if rank == 0:
            torch.save(model.state_dict(), folder / "weights.pt")


if __name__ == "__main__":
    main()

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from conftest import ODD, random_model
from test_batches import encoding, numbers

from minibert.batches import mixed_states
from minibert.edits import edit, scale_by
from minibert.hooks import capture
from minibert.model import BertModel
from minibert.vectors import Reading
from minibert.workers import MOST_WORKERS, count_workers, run_batches


@pytest.fixture
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def model() -> BertModel:
    return random_model(ODD)


@pytest.mark.usefixtures("four_threads")
def test_several_workers_give_what_one_gives(model: BertModel) -> None:
    """With all states, each of which is captured: no batch may see another's."""
    rows = [numbers(1 + n % 17, seed=n) for n in range(300)]
    encodings = [encoding(row) for row in rows]
    reading = Reading("all", "stack")
    results = dict(mixed_states(model, encodings, reading, batch_tokens=64))
    torch.set_num_threads(1)
    expected = dict(mixed_states(model, encodings, reading, batch_tokens=64))
    assert list(results) == list(expected)
    assert all(np.array_equal(results[n], states) for n, states in expected.items())


@pytest.mark.usefixtures("four_threads")
def test_bulk_work_has_a_thread_a_batch(model: BertModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    forward = BertModel.forward

    def spy(self, input_ids, token_type_ids):  # type: ignore[no-untyped-def]
        seen.add((threading.get_ident(), torch.get_num_threads()))
        time.sleep(0.01)
        return forward(self, input_ids, token_type_ids)

    monkeypatch.setattr(BertModel, "forward", spy)
    few = [encoding(numbers(9, n)) for n in range(8)]
    list(mixed_states(model, few, Reading(), batch_tokens=9))
    assert seen == {(threading.get_ident(), 4)}
    seen.clear()
    many = [encoding(numbers(16, n)) for n in range(128)]  # 2,048 tokens: enough for four
    list(mixed_states(model, many, Reading(), batch_tokens=64))
    assert len(seen) == 4
    assert {threads for _, threads in seen} == {1}
    assert threading.get_ident() not in {thread for thread, _ in seen}
    assert torch.get_num_threads() == 4


@pytest.mark.usefixtures("four_threads")
def test_where_there_is_one_worker(model: BertModel) -> None:
    assert count_workers(model, 100) == 4 <= MOST_WORKERS
    assert count_workers(model, 3) == 3
    assert count_workers(model, 0) == 1
    with torch.autocast("cpu", torch.bfloat16):
        assert count_workers(model, 100) == 1
    hook = model.encoder.layers[1].register_forward_hook(lambda *_: None)
    assert count_workers(model, 100) == 1
    hook.remove()
    assert count_workers(model, 100) == 4
    with capture(model, "embeddings"):
        assert count_workers(model, 100) == 1
    assert count_workers(model.to("meta"), 100) == 1
    torch.set_num_threads(1)
    assert count_workers(random_model(ODD), 100) == 1


@pytest.mark.usefixtures("four_threads")
def test_autocast_and_edits_take_part(model: BertModel) -> None:
    encodings = [encoding(numbers(17, n)) for n in range(200)]
    plain = dict(mixed_states(model, encodings, Reading()))
    with edit(model, {"encoder.layers.2": scale_by(2.0)}):
        edited = dict(mixed_states(model, encodings, Reading()))
    assert all(np.allclose(edited[n], 2 * states, atol=1e-5) for n, states in plain.items())
    with torch.autocast("cpu", torch.bfloat16):
        cast = dict(mixed_states(model, encodings, Reading()))
    assert all(1e-4 < np.abs(cast[n] - states).max() < 0.5 for n, states in plain.items())


@pytest.mark.usefixtures("four_threads")
def test_results_come_in_order_and_wait_for_the_reader(model: BertModel) -> None:
    done = []

    def run(_: BertModel, number: int) -> int:
        time.sleep(0.03 if number % 3 == 0 else 0.0)
        done.append(number)
        return number

    results = run_batches(model, range(40), run, 4)
    for expected in range(10):
        assert next(results) == (expected, expected)
    time.sleep(0.2)
    assert len(done) <= 10 + 5  # those in the works, and one more
    results.close()
    time.sleep(0.1)
    assert len(done) <= 10 + 5
    assert torch.get_num_threads() == 4


@pytest.mark.usefixtures("four_threads")
def test_an_error_in_a_batch_is_the_callers(model: BertModel) -> None:
    def run(_: BertModel, number: int) -> int:
        return 1 // (number - 5)

    before = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        list(run_batches(model, range(40), run, 3))
    assert threading.active_count() == before


def test_the_copies_share_the_parameters(model: BertModel) -> None:
    def run(own: BertModel, _: int) -> bool:
        assert own is not model
        mine, theirs = own.state_dict(), model.state_dict()
        return all(mine[name].data_ptr() == tensor.data_ptr() for name, tensor in theirs.items())

    assert all(result for _, result in run_batches(model, range(9), run, 2))

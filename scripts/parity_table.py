"""Measure how closely minibert agrees with transformers, and print the README's tables.

    PYTHONPATH=tests python scripts/parity_table.py

The comparisons are those of tests/test_parity.py, which holds each to its bound. It takes a minute
or two. A difference is |difference| / max(1, |expected|), the largest at any number; of
sentences, states and published numbers the largest |difference|.
"""

import copy
import platform
import time

import torch
import transformers
from conftest import random_batch, random_model, their_model
from test_parity import (
    BASE,
    CHINESE,
    GRADIENT_SEEDS,
    LARGE,
    MULTILINGUAL,
    SEEDS,
    against_golden,
    batch_errors,
    fused_states,
    gradient_errors,
    random_config,
    read_golden,
)

import minibert
from minibert.bert import Bert
from minibert.bundle import Inputs, fixed_inputs, trace, trace_cases
from minibert.config import BertConfig
from minibert.hooks import state_names
from minibert.hub import find_files
from minibert.model import BertModel
from minibert.parity import Comparison, compare, live
from minibert.verify import verify

DOUBLE, SINGLE = torch.float64, torch.float32


def row(what: str, reference: str, on: str, single: float | None, double: float | None) -> None:
    """Print one row; None is a dtype that was not run."""
    words = {None: "-", 0.0: "equal"}
    numbers = (words.get(error) or f"{error:.1e}" for error in (single, double))
    print("|", " | ".join((what, reference, on, *numbers)), "|", flush=True)


def worst(comparison: Comparison) -> float:
    """The largest error of any number, |difference| / max(1, |expected|)."""
    return max(one.relative for one in comparison.differences)


def with_transformers(bert: Bert) -> None:
    """Every tensor that the modules of transformers show."""
    name = f"transformers {transformers.__version__}"
    on_minilm, states = {}, {}
    outputs = {*state_names(bert.model), "pooler"}
    for dtype in (SINGLE, DOUBLE):
        theirs = transformers.BertModel.from_pretrained(
            find_files("minilm").folder, attn_implementation="eager"
        )
        model = copy.deepcopy(bert.model).to(dtype)
        comparison = live(model, theirs.to(dtype), fixed_inputs(model.config))
        on_minilm[dtype] = worst(comparison)
        differences = [one for one in comparison.differences if one.name in outputs]
        for inputs in fixed_inputs(model.config).values():
            differences += fused_states(model, theirs, inputs).differences
        states[dtype] = max(one.largest for one in differences)
    row("every state, pooler", name, "minilm, 1 to 512 tokens", states[SINGLE], states[DOUBLE])
    row("every tensor", name, "minilm, 1 to 512 tokens", on_minilm[SINGLE], on_minilm[DOUBLE])
    random, fused = dict.fromkeys((SINGLE, DOUBLE), 0.0), dict.fromkeys((SINGLE, DOUBLE), 0.0)
    for seed in SEEDS:
        config, inputs = random_config(seed)
        model = random_model(config, DOUBLE, seed)
        for dtype in (DOUBLE, SINGLE):
            theirs = their_model(model.to(dtype))
            random[dtype] = max(random[dtype], worst(live(model, theirs, {"random": inputs})))
            fused[dtype] = max(fused[dtype], worst(fused_states(model, theirs, inputs)))
    row("every state, fused", name, f"{len(SEEDS)} random BERTs", fused[SINGLE], fused[DOUBLE])
    row("every tensor", name, f"{len(SEEDS)} random BERTs", random[SINGLE], random[DOUBLE])
    for on, config, dtypes in (
        ("bert-base's shape", BASE, (SINGLE, DOUBLE)),
        ("multilingual's shape", MULTILINGUAL, (SINGLE,)),
        ("Chinese's shape", CHINESE, (DOUBLE,)),
        ("bert-large's shape", LARGE, (SINGLE,)),
    ):
        errors = {dtype: on_shape(config, dtype) for dtype in dtypes}
        row("every tensor", name, f"{on}, random", errors.get(SINGLE), errors.get(DOUBLE))
    gradient = max(max(gradient_errors(seed).values()) for seed in GRADIENT_SEEDS)
    row("every gradient", name, f"{len(GRADIENT_SEEDS)} random BERTs", None, gradient)


def on_shape(config: BertConfig, dtype: torch.dtype) -> float:
    """The error on a random model of a released shape."""
    model = random_model(config, dtype)
    return worst(live(model, their_model(model), {"": Inputs(*random_batch(config, 2, 12))}))


def with_itself(bert: Bert) -> None:
    """Stored activations, batches, and the published numbers."""
    model, tensors = read_golden()
    single = worst(against_golden(copy.deepcopy(model).float(), tensors))
    double = worst(against_golden(model, tensors))
    row("every tensor", "stored activations", "a small random BERT", single, double)
    for kind, single in batch_errors(bert, SINGLE).items():
        row(
            "a sentence",
            "itself alone",
            f"minilm, {kind}",
            single,
            batch_errors(bert, DOUBLE)[kind],
        )
    numbers = verify("minilm")
    passed = sum(number.verdict == "pass" for number in numbers)
    furthest = max(number.difference or 0.0 for number in numbers)
    row(f"{passed} of {len(numbers)} published numbers", "their sources", "minilm", furthest, None)


def half_precision(bert: Bert) -> None:
    """The error at each state of minilm, against float64 on the same inputs."""
    cases, names = fixed_inputs(bert.config), [*state_names(bert.model), "pooler"]
    exact = trace_cases(copy.deepcopy(bert.model).double(), cases)
    print("\n| largest difference on minilm, from float64 | float32 | float16 | bfloat16 |")
    print("|---|---|---|---|")
    errors = {name: [] for name in names}
    for dtype in (SINGLE, torch.float16, torch.bfloat16):
        model: BertModel = copy.deepcopy(bert.model).to(dtype)
        got = {
            f"{case}/{name}": tensor
            for case, inputs in cases.items()
            for name, tensor in trace(model, inputs, names).items()
        }
        for name in names:
            found = [one for one in compare(exact, got).differences if one.name == name]
            largest, cosine = max(one.largest for one in found), min(one.cosine for one in found)
            errors[name].append(f"{largest:.1e} (1 - cosine {max(0.0, 1 - cosine):.0e})")
    for number, name in enumerate(names):
        label = f"state {number}" if name != "pooler" else "pooler"
        print("|", " | ".join((label, *errors[name])), "|")


def main() -> None:
    """Print both tables, and what they were measured with."""
    start = time.perf_counter()
    bert = minibert.load("minilm")
    print("| what | compared with | on | float32 | float64 |")
    print("|---|---|---|---|---|")
    with_transformers(bert)
    with_itself(bert)
    half_precision(bert)
    seconds = time.perf_counter() - start
    print(f"\nMeasured on {time.strftime('%d %B %Y', time.gmtime())}, {platform.system()}", end=" ")
    print(f"{platform.machine()}, CPU, torch {torch.__version__}, in {seconds:.0f} s.")


if __name__ == "__main__":
    main()

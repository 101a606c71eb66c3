"""The programs in scripts/ that no other test runs."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import PIECES, ROOT, run_python

from minibert.loading import load

# Two nodes of one core each, and somebody who kills the first worker that is at work.
CLUSTER = """
import os, runpy, signal, sys, threading, time
from ray.cluster_utils import Cluster

def workers():
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                name = open(f"/proc/{{entry}}/cmdline").read()
            except OSError:
                continue
            if name.startswith("ray::MapWorker(MapBatches(Worker))"):
                yield int(entry), name

def kill_one():
    while True:
        for process, name in workers():
            if "submit" in name:  # at work on a block
                os.kill(process, signal.SIGKILL)
                print("killed", process, flush=True)
                return
        time.sleep(0.02)

cluster = Cluster(initialize_head=True, head_node_args={{"num_cpus": 1}})
cluster.add_node(num_cpus=1)
threading.Thread(target=kill_one, daemon=True).start()
sys.argv[1:] = {arguments!r} + ["--address", cluster.address]
runpy.run_path({script!r}, run_name="__main__")
import ray
print("nodes", len(ray.nodes()))
ray.shutdown()
cluster.shutdown()
"""


def test_extraction_with_ray_and_a_killed_worker(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs the extra ray")
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = tmp_path / "texts"
    texts.mkdir()
    lines = [
        " ".join(PIECES[5 + n % 9] for n in range(start, start + start % 13))
        for start in range(3000)
    ]
    (texts / "a.txt").write_text("".join(f"{line}\n" for line in lines[:2000]))
    (texts / "b.txt").write_text("\r\n".join(lines[2000:]))  # and no end of line at the end
    arguments = [str(texts), str(tmp_path / "vectors"), "--model", str(folder)]
    arguments += ["--workers", "2", "--block", "50", "--unit", "token", "--layers=-1,0"]
    script = str(ROOT / "scripts" / "extract_ray.py")
    result = run_python(CLUSTER.format(arguments=arguments, script=script))
    assert result.returncode == 0, result.stderr[-2000:]
    assert "nodes 2" in result.stdout
    assert "killed" in result.stdout
    table = pq.read_table(tmp_path / "vectors")
    assert table.schema.field("vectors").type == pa.list_(pa.list_(pa.float32(), 33))
    rows = {row["id"]: row for row in table.to_pylist()}
    assert len(rows) == table.num_rows == len(lines)  # nothing lost, nothing twice
    in_order = sorted(rows, key=lambda key: (key.rpartition(":")[0], int(key.rpartition(":")[2])))
    assert [rows[key]["text"] for key in in_order] == lines
    expected = load(folder).vectors(lines, [-1, 0])
    for key, vectors in zip(in_order, expected, strict=True):
        assert rows[key]["tokens"] == vectors.tokens
        assert np.abs(np.array(rows[key]["vectors"]) - vectors.vectors).max() < 1e-5


def test_senses(tmp_path: Path, folder: Path) -> None:
    """A made-up language in which the word that follows tells the sense."""
    path = tmp_path / "senses.tsv"
    rows = ["word\tlabel\tsentence_a\tsentence_b"]
    for n in range(40):
        word, label = ("a", "i", "the", "wa", "walrus")[n % 5], ("same", "different")[n % 2]
        rows.append(f"{word}\t{label}\t{word} b\t{word} {'b' if label == 'same' else 'am'}")
    path.write_text("\n".join(rows))
    script = str(ROOT / "scripts" / "senses.py")
    command = [sys.executable, script, str(path), "--model", str(folder)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = printed.splitlines()
    assert lines[0].endswith("40 pairs, 50.0% in the same sense")
    accuracy = {line[:31].strip(): float(line[31:].split("%")[0]) for line in lines[1:]}
    assert accuracy["state 0"] <= 60  # before any layer the word is the same
    assert accuracy["state 1"] >= 90


@pytest.mark.usefixtures("minilm_folder")
def test_the_walkthrough_agrees_at_every_step() -> None:
    script = ROOT / "scripts" / "walkthrough.py"
    command = [sys.executable, str(script)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    steps = re.findall(r"^(\d+)\. ", result.stdout, re.MULTILINE)
    assert steps == [str(number) for number in range(1, 12)]
    assert result.stdout.count("as minibert, ") == 18
    cells = re.split(r"^# %%(.*)$", script.read_text(), flags=re.MULTILINE)
    assert cells[0] == ""
    assert set(cells[1::2]) == {"", " [markdown]"}


@pytest.mark.usefixtures("minilm_folder")
def test_the_walkthrough_stops_where_the_library_is_wrong() -> None:
    code = f"""
import runpy
import torch
torch.nn.GELU.forward = lambda self, x: torch.nn.functional.gelu(x, approximate="tanh")
runpy.run_path({str(ROOT / "scripts" / "walkthrough.py")!r})
"""
    result = run_python(code)
    assert result.returncode == 1
    assert re.fullmatch(r"state 1: differs by [\d.]+e-04, more than 1e-12\n", result.stderr)

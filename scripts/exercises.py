"""Ten exercises: a function of minibert is emptied, and you write it again from its docstring.

    scripts/exercise             lists them
    scripts/exercise 1           makes exercises/1, a copy of the package with the hole
    scripts/exercise 1 --check   says what is still wrong, and exits with 1; or 0 if all is right

The solutions are the library. The copy is yours and git ignores it; to begin anew, delete it.
"""

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import torch
from trials import EXERCISES, SOLVED, run

import minibert

LIBRARY = Path(minibert.__file__).parent
# In the tree, not hidden: a learner finds it beside the package, and an editor shows both.
FOLDER = Path(__file__).parents[1] / "exercises"


def main() -> int:
    """Read the arguments; gives the exit status."""
    parser = argparse.ArgumentParser(
        prog="scripts/exercise",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("number", nargs="?", type=int, choices=EXERCISES, help="which one")
    parser.add_argument("--check", action="store_true", help="judge what you wrote")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="instead of exercises/")
    parser.add_argument("--seconds", type=float, default=60, help="how long a check may take (60)")
    options = parser.parse_args()
    if options.folder.resolve() in LIBRARY.resolve().parents:
        parser.error(f"{LIBRARY} is a learner's copy, not the library; take it off PYTHONPATH")
    if options.number is None:
        if options.check:
            parser.error("--check needs the number of an exercise")
        for number, exercise in EXERCISES.items():
            print(f"{number:>2}  {exercise.title}")
        return 0
    copy = options.folder / str(options.number)
    if options.check:
        if not copy.exists():
            parser.error(f"{copy} is not there; scripts/exercise {options.number} makes it")
        return check(options.number, copy, options.seconds)
    if copy.exists():
        parser.error(f"{copy} is there already, with your work; delete it to begin anew")
    prepare(options.number, copy)
    return 0


def prepare(number: int, copy: Path) -> None:
    """Copy the package, empty the functions, and say what to do."""
    shutil.copytree(LIBRARY, copy / "minibert", ignore=shutil.ignore_patterns("__pycache__"))
    exercise = EXERCISES[number]
    print(f"{number}. {exercise.title}\n")
    print(textwrap.fill(exercise.task, 88))
    print("\nEmptied, for you to write:")
    for hole in exercise.holes:
        module, _, name = hole.partition(".")
        path = copy / "minibert" / f"{module}.py"
        source, line = emptied(path.read_text("utf-8"), name, f"exercise {number}: write {name}")
        path.write_text(source, "utf-8")
        print(f"    {path}:{line}  {name}")
    where = "" if copy.parent == FOLDER else f" --folder {copy.parent}"
    print(f"\nThen: scripts/exercise {number} --check{where}")


def emptied(source: str, name: str, message: str) -> tuple[str, int]:
    """A module's source with only the docstring left of one function; and the line of its hole."""
    node: ast.AST = ast.parse(source)
    for part in name.split("."):
        children = ast.iter_child_nodes(node)
        node = next(child for child in children if getattr(child, "name", None) == part)
    if not isinstance(node, ast.FunctionDef):
        raise ValueError(f"{name} is not a function")
    has_docstring = ast.get_docstring(node) is not None
    start = (node.body[0].end_lineno or 0) if has_docstring else node.body[0].lineno - 1
    hole = f'{" " * node.body[0].col_offset}raise NotImplementedError("{message}")\n'
    lines = source.splitlines(keepends=True)
    lines[start : node.end_lineno] = [hole]
    return "".join(lines), start + 1


def check(number: int, copy: Path, seconds: float) -> int:
    """Try a learner's copy in a process of its own, against the library; gives the exit status."""
    with tempfile.TemporaryDirectory() as folder:
        expected = Path(folder) / "expected.pt"
        torch.save(run(number), expected)
        trials = str(Path(__file__).with_name("trials.py"))
        # -B: Python takes a stale __pycache__ for a file that changed twice within a second.
        command = [sys.executable, "-B", trials, str(number), str(expected)]
        environment = {**os.environ, "PYTHONPATH": str(copy.resolve())}
        try:
            judged = subprocess.run(
                command,
                env=environment,
                stderr=subprocess.PIPE,
                text=True,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            print(f"not yet: no answer after {seconds:g} seconds; is there a loop without an end?")
            return 1
    if judged.returncode == SOLVED:
        compare = f"{LIBRARY}/{EXERCISES[number].holes[0].partition('.')[0]}.py"
        print(f"exercise {number} is solved; now compare with {compare}")
        return 0
    print(summary(judged.stderr, copy) or f"not yet: it ended with status {judged.returncode}")
    return 1


def summary(errors: str, copy: Path) -> str:
    """The verdict; or of a traceback, the error and the last line of the copy that led to it."""
    if "Traceback" not in errors and "SyntaxError" not in errors:
        return errors.strip()
    last = errors.strip().splitlines()[-1]
    places = re.findall(r'File "(.*)", line (\d+)', errors)
    own = [(path, line) for path, line in places if Path(path).is_relative_to(copy.resolve())]
    return f"not yet: {last}" + (f"\n  at {own[-1][0]}:{own[-1][1]}" if own else "")


if __name__ == "__main__":
    sys.exit(main())

"""Makes the README's pictures anew, in scripts/pictures: by the commands that the README shows.

    python scripts/pictures.py            attention.svg, similarity.svg, lens.png
    python scripts/pictures.py DATA       and senses.svg, from DATA/senses.tsv

Wants the extra `plot`, and for lens.png a chromium on the PATH. The first two and the last are the
same bytes each time; lens.png depends on the browser.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from minibert import cli

FOLDER = Path(__file__).parent / "pictures"
APPLES = ["I ate an apple.", "An Apple phone.", "An apple pie."]
MODEL = ["--model", "minilm"]
COMMANDS = {
    "attention.svg": ["plot", "attention", *MODEL, "--head", "3-9", "I am the walrus."],
    "similarity.svg": ["plot", "similarity", *MODEL, "apple", *APPLES],
    "lens.html": ["lens", *MODEL, "The bank raised the rate. ||| She sat on the bank."],
}


def draw(arguments: list[str], path: Path) -> Path:
    """Run one command of minibert's."""
    if cli.main([*arguments, "-o", str(path)]):
        raise SystemExit(1)
    return path


def photograph(page: Path, path: Path) -> None:
    """The top of a page as a picture of 128 colours, which are enough for it."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("lens.png needs a chromium on the PATH")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    raw = page.with_suffix(".png")
    shot = [f"--screenshot={raw}", "--window-size=1280,1760", page.as_uri()]
    subprocess.run([browser, *options, *shot], check=True, capture_output=True, timeout=120)
    picture = Image.open(raw).convert("RGB").crop((0, 0, 1280, 1700))
    picture.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    """Read the arguments, and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", nargs="?", type=Path, help="the folder of senses.tsv")
    data = parser.parse_args().data
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for svg in ("attention.svg", "similarity.svg"):
            draw(COMMANDS[svg], FOLDER / svg)
        photograph(draw(COMMANDS["lens.html"], folder / "lens.html"), FOLDER / "lens.png")
        if data is not None:
            script = Path(__file__).with_name("senses.py")
            command = [sys.executable, script, data / "senses.tsv", "--model", "minilm"]
            result = subprocess.run(command, check=True, stdout=subprocess.PIPE)
            (folder / "senses.txt").write_bytes(result.stdout)
            draw(["plot", "senses", str(folder / "senses.txt")], FOLDER / "senses.svg")


if __name__ == "__main__":
    main()

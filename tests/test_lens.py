"""The page of `minibert lens`, most of it in a real browser without a window."""

import base64
import dataclasses
import hashlib
import importlib.metadata
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ODD, PIECES, ROOT, random_bert_with, random_model

import minibert
from minibert.analysis import read_out, word_attention
from minibert.bert import Bert
from minibert.cli import main
from minibert.config import BertConfig
from minibert.edits import ablate_heads, edit
from minibert.heads import MaskedLMHead
from minibert.hooks import capture
from minibert.lens import lens_page
from minibert.loading import new_head
from minibert.model import BertModel, BertOutput
from minibert.source import Source
from minibert.tokenizer import WordPieceTokenizer

PAIR = ("I am the walrus.", "the b [MASK] walrus a")
LAYERS, HEADS, STATES = 3, 3, 4  # of ODD


def make_bert(dtype: torch.dtype = torch.float32) -> Bert:
    return Bert(ODD, WordPieceTokenizer(PIECES, lowercase=True), random_model(ODD, dtype))


def data_of(page: str) -> dict[str, Any]:
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page)
    data: dict[str, Any] = json.loads(found)
    return data


def floats(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<f4")


# ---- What is in the file


def test_the_numbers_are_those_of_states() -> None:
    bert = make_bert()
    data = data_of(lens_page(bert, [" ||| ".join(PAIR), "a b"]))
    for text, pair in zip(data["texts"], (PAIR, "a b"), strict=True):
        states = bert.states(pair, attentions=True)
        assert states.attentions is not None
        assert np.array_equal(floats(text["states"]), states.hidden_states.flatten().numpy())
        for layer, attention in zip(text["attentions"], states.attentions, strict=True):
            assert np.array_equal(floats(layer), attention.flatten().numpy())
        assert text["tokens"] == states.tokens
    walrus = data["texts"][0]["words"][4]
    assert walrus["label"] == "walrus"
    assert (walrus["first"], walrus["last"], walrus["start"], walrus["end"]) == (4, 6, 9, 15)


def test_the_projection_is_onto_principal_components() -> None:
    bert = make_bert()
    data = data_of(lens_page(bert, list(PAIR)))
    every = np.concatenate([floats(text["states"]).reshape(-1, 33) for text in data["texts"]])
    points = np.concatenate([floats(text["points"]).reshape(-1, 2) for text in data["texts"]])
    centred = every.astype(float) - every.astype(float).mean(axis=0)
    variances = np.linalg.eigvalsh(centred.T @ centred)[::-1]
    assert data["projection"] == pytest.approx(variances[:2] / variances.sum(), rel=1e-9)
    assert (points.astype(float) ** 2).sum(axis=0) == pytest.approx(variances[:2], rel=1e-5)
    assert abs(points[:, 0] @ points[:, 1]) < 1e-3
    # It is a projection: distances between points are at most those between vectors.
    far = np.linalg.norm(points[0] - points, axis=1)
    assert (far <= np.linalg.norm(every[0] - every, axis=1) + 1e-4).all()


@pytest.mark.parametrize("head", ["masked-lm", "pretraining"])
def test_guesses_are_those_of_read_out(head: str) -> None:
    bert = random_bert_with(head)
    masked = bert.head.masked_lm if head == "pretraining" else bert.head  # type: ignore[union-attr]
    (text,) = data_of(lens_page(bert, [PAIR[1]]))["texts"]
    guesses, states = text["guesses"], bert.states(PAIR[1], attentions=True)
    tokens = len(states.tokens)
    ids = np.array(guesses["ids"]).reshape(STATES, tokens, guesses["count"])
    probabilities = floats(guesses["probabilities"]).reshape(ids.shape)
    for token in range(tokens):
        expected = read_out(states.hidden_states[:, token], bert.head, 5)
        assert ids[:, token].tolist() == expected.tolist()
    assert (np.diff(probabilities) <= 0).all()
    with torch.no_grad():
        logits = masked(BertOutput(states.hidden_states[2], None))
    assert probabilities[2] == pytest.approx(logits.softmax(-1).topk(5).values.numpy(), abs=1e-6)


def test_rows_to_spare_have_no_piece() -> None:
    bert = random_bert_with("masked-lm")
    few = Bert(ODD, WordPieceTokenizer(PIECES[:-2], lowercase=True), bert.model, None, bert.head)
    data = data_of(lens_page(few, ["i am the wa"]))
    spare = {"12": "(row 12)", "13": "(row 13)"}
    assert spare.items() & data["pieces"].items()  # or this would show nothing
    for number, piece in data["pieces"].items():
        assert piece == spare.get(number, PIECES[int(number)])


def test_another_head_is_another_model() -> None:
    one, other = random_bert_with("masked-lm"), random_bert_with("masked-lm")
    assert isinstance(other.head, MaskedLMHead)
    with torch.no_grad():
        other.head.bias[3] += 1
    made = [data_of(lens_page(bert, ["a"]))["model"] for bert in (one, one, other)]
    assert made[0] == made[1]
    assert made[0]["sha256"] == made[2]["sha256"]  # of the encoder
    assert made[0]["head_sha256"] != made[2]["head_sha256"]


@pytest.mark.parametrize("head", [None, "next-sentence"])
def test_no_guesses_without_a_masked_lm_head(head: str | None) -> None:
    bert = make_bert() if head is None else random_bert_with(head)
    data = data_of(lens_page(bert, ["a [MASK]"]))
    assert data["texts"][0]["guesses"] is None
    assert data["model"]["head"] == head
    assert (data["model"]["head_sha256"] is None) == (head is None)


def test_edits_take_part_and_half_precision_is_exact() -> None:
    bert = make_bert()
    before = lens_page(bert, ["a b"])
    assert lens_page(bert, ["a b"]) == before  # nothing in it is a date or random
    with edit(bert.model, {"encoder.layers.0.attention.context": ablate_heads([1])}):
        assert lens_page(bert, ["a b"]) != before
    half = make_bert(torch.bfloat16)
    (text,) = data_of(lens_page(half, ["a b"]))["texts"]
    expected = half.states("a b", attentions=True).hidden_states.float().flatten().numpy()
    assert np.array_equal(floats(text["states"]), expected)


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ("a b", "texts must be a list of str, and not empty, got 'a b'"),
        ([], "texts must be a list"),
        (["a", 5], "texts must be a list"),
        (["a " * 20], "22 tokens are more than the 17 positions"),
    ],
)
def test_wrong_texts(texts: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        lens_page(make_bert(), texts)


def test_what_no_page_could_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="load it as float32"):
        lens_page(make_bert(torch.float64), ["a"])
    huge = make_bert()
    huge.model.encoder.layers[1].feed_forward_norm.weight.data *= 3e38
    with pytest.raises(ValueError, match="state 2 of text 1 is not finite: 'a b'"):
        lens_page(huge, ["a b"])
    monkeypatch.setattr("minibert.lens.LARGEST", 1000)
    with pytest.raises(ValueError, match="more than browsers open; give fewer texts"):
        lens_page(make_bert(), ["a b"])
    bert = make_bert()
    bert.model.train()
    with pytest.raises(ValueError, match="training mode"):
        lens_page(bert, ["a"])


def test_two_sentences_of_bert_base_are_small() -> None:
    """With the head, and a piece of its own for each of its guesses."""
    config = BertConfig(vocab_size=3000)
    pieces = [*PIECES, *(f"piece{number}" for number in range(3000 - len(PIECES)))]
    model = BertModel(config).eval()
    bert = new_head(Bert(config, WordPieceTokenizer(pieces, lowercase=True), model), "masked-lm")
    page = lens_page(bert, ["the a walrus b the am . ||| i am the walrus on the b of the a ."])
    data = data_of(page)
    assert len(data["texts"][0]["tokens"]) == 25
    assert len(data["pieces"]) > 100
    assert len(page.encode()) < 3_000_000


def test_a_wheel_carries_the_page() -> None:
    (line,) = re.findall(r"^package-data = .*", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    listed = re.findall(r'"(.*?)"', line)
    there = [path.name for path in (ROOT / "minibert").iterdir() if path.is_file()]
    assert sorted(listed) == sorted(name for name in there if not name.endswith(".py"))


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, model = tmp_path / "page.html", str(folder)
    assert main(["lens", "--model", model, "a b ||| i", "-o", str(page)]) == 0
    assert capsys.readouterr().out == ""
    first = page.read_bytes()
    assert data_of(first.decode())["texts"][0]["parts"] == ["a b", "i"]
    assert data_of(first.decode())["model"]["name"] == model
    assert main(["lens", "--model", model, "a", "-o", str(page)]) == 0  # replaced
    assert data_of(page.read_text())["texts"][0]["parts"] == ["a"]
    assert main(["lens", "--model", model, "a b ||| i", "-o", "-"]) == 0
    assert capsys.readouterr().out.encode() == first
    arguments = ["lens", "--model", model, "a " * 30, "--max-length", "9", "-o", str(page)]
    assert main(arguments) == 0
    (text,) = data_of(page.read_text())["texts"]
    assert (len(text["tokens"]), text["whole"]) == (9, 32)
    assert main(["lens", "--model", model, "-o", str(page)]) == 2
    with pytest.raises(SystemExit):  # no option that does nothing
        main(["lens", "--model", model, "a", "-o", str(page), "--json"])
    capsys.readouterr()
    assert main(["lens", "--model", model, "a", "-o", str(tmp_path / "no" / "page.html")]) == 1
    assert "page.html: No such file or directory" in capsys.readouterr().err
    assert main(["lens", "--model", model, "a", "-o", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"minibert: cannot write {tmp_path}: Is a directory\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "page.html"]
    assert not tmp_path.with_name(f"{tmp_path.name}.tmp").exists()


def test_the_command_reads_the_head_of_the_model(tmp_path: Path) -> None:
    minibert.save(random_bert_with("masked-lm"), tmp_path / "model")
    page = tmp_path / "page.html"
    assert main(["lens", "--model", str(tmp_path / "model"), "a [MASK]", "-o", str(page)]) == 0
    data = data_of(page.read_text())
    assert data["model"]["head"] == "masked-lm"
    assert data["texts"][0]["guesses"]["count"] == 5


def test_the_command_goes_on_without_a_head_that_it_cannot_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, page = tmp_path / "model", tmp_path / "page.html"
    minibert.save(random_bert_with("masked-lm"), folder)
    text = (folder / "config.json").read_text()

    def run(*options: str) -> tuple[int, str, Any]:
        page.unlink(missing_ok=True)
        code = main(["lens", "--model", str(folder), "a [MASK]", "-o", str(page), *options])
        told = capsys.readouterr().err
        return code, told, page.exists() and data_of(page.read_text())["model"]["head"]

    assert run() == (0, "", "masked-lm")
    assert run("--head", "none") == (0, "", None)
    (folder / "config.json").write_text(text.replace("BertForMaskedLM", "BertLMHeadModel"))
    code, told, head = run()
    assert (code, head) == (0, None)
    assert (
        "['BertLMHeadModel'], a head that minibert does not have; the page is made without" in told
    )
    assert told.count("\n") == 1
    assert run("--head", "auto")[:2] == (0, told)
    assert run("--head", "masked-lm") == (0, "", "masked-lm")
    (folder / "config.json").write_text(text)
    minibert.save(make_bert(), tmp_path / "bare")
    shutil.copy(tmp_path / "bare" / "model.safetensors", folder)
    code, told, head = run()
    assert (code, head) == (0, None)
    assert "has no masked-lm head" in told
    code, told, head = run("--head", "masked-lm")
    assert (code, head) == (1, False)
    (folder / "model.safetensors").unlink()  # not the head's fault
    code, told, head = run()
    assert (code, head, told.count("\n")) == (1, False, 1)
    assert "without" not in told
    with pytest.raises(SystemExit):
        run("--head", "question-answering")


# ---- In a browser


class Browser:
    """Chromium without a window; its console and network are looked at after each test."""

    def __init__(self, driver: Any, by: Any, keys: Any) -> None:
        self.driver, self.by, self.keys = driver, by, keys

    def open(self, page: Path, width: int = 1280, theme: str = "light") -> None:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        feature = {"name": "prefers-color-scheme", "value": theme}
        self.driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"media": "", "features": [feature]}
        )
        self.driver.get(page.as_uri())

    def run(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(script, *arguments)

    def all(self, selector: str) -> list[Any]:
        found: list[Any] = self.driver.find_elements(self.by.CSS_SELECTOR, selector)
        return found

    def text(self, selector: str) -> str:
        text: str = self.all(selector)[0].text
        return text

    def click(self, selector: str, number: int = 0) -> None:
        element = self.all(selector)[number]
        self.run("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def choose(self, control: str, value: object) -> None:
        """As a person would: set a control, and let it tell."""
        self.run(
            """const control = document.getElementById(arguments[0]);
            control.value = arguments[1];
            for (const kind of ["input", "change"])
                control.dispatchEvent(new Event(kind, { bubbles: true }));""",
            control,
            str(value),
        )

    def press(self, *keys: str) -> None:
        for key in keys:
            self.driver.switch_to.active_element.send_keys(key)

    def table(self, name: str) -> list[list[str]]:
        """Each row of a table's body: the exact number of a cell that has one, else its text."""
        script = """return [...document.getElementById(arguments[0]).tBodies[0].rows].map((row) =>
            [...row.cells].map((cell) => cell.dataset.value ?? cell.textContent));"""
        rows: list[list[str]] = self.run(script, name)
        return rows

    def attributes(self, selector: str, name: str) -> list[str]:
        script = """return [...document.querySelectorAll(arguments[0])].map((found) =>
            found.getAttribute(arguments[1]));"""
        values: list[str] = self.run(script, selector, name)
        return values

    def column(self, name: str, number: int) -> np.ndarray:
        return np.array([float(row[number]) for row in self.table(name)])

    def shown(self) -> tuple[str, str]:
        label, _, number = plain(self.text("#shown")).rpartition(": ")
        return label, number

    def copied(self) -> str:
        """What is in the clipboard, once the page has said that it is."""
        self.wait(lambda: self.text("#shown").startswith("Copied"))
        script = "const done = arguments[0]; navigator.clipboard.readText().then(done)"
        text: str = self.driver.execute_async_script(script)
        return text

    def wait(self, holds: Callable[[], bool]) -> None:
        from selenium.webdriver.support.wait import WebDriverWait

        WebDriverWait(self.driver, 20).until(lambda _driver: holds())


def plain(text: str) -> str:
    """Without the marks around tokens that keep a direction of writing to itself."""
    return re.sub("[\u2068\u2069]", "", text)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium (extra test)")
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    driver_path = shutil.which("chromedriver")
    if binary is None or driver_path is None:
        pytest.skip("needs chromium and chromedriver")
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in ("no-sandbox", "headless=new", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(driver_path))
    allowed = {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    driver.execute_cdp_cmd("Browser.grantPermissions", allowed)
    # Else a page has the focus only some time after it was loaded.
    driver.execute_cdp_cmd("Emulation.setFocusEmulationEnabled", {"enabled": True})
    yield Browser(driver, By, Keys)
    driver.quit()


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    for log in ("browser", "performance"):
        chromium.driver.get_log(log)  # what the test before left
    yield chromium
    assert [entry["message"] for entry in chromium.driver.get_log("browser")] == []
    events = [json.loads(e["message"])["message"] for e in chromium.driver.get_log("performance")]
    requests = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert requests
    assert all(url.startswith("file://") for url in requests), requests


@pytest.fixture(scope="module")
def bert() -> Bert:
    return random_bert_with("masked-lm")


@pytest.fixture(scope="module")
def page(bert: Bert, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair, read together."""
    path = tmp_path_factory.mktemp("lens") / "pair.html"
    path.write_text(lens_page(bert, [" ||| ".join(PAIR)]), "utf-8")
    return path


def same_floats(shown: list[str], expected: torch.Tensor) -> bool:
    """Whether decimals are these float32, each the shortest that is."""
    numbers = np.array(shown, np.float64).astype(np.float32)
    lengths = [len(text.partition("e")[0].replace(".", "").strip("-0")) for text in shown]
    shortest = [
        len(np.format_float_scientific(number, trim="-").partition("e")[0].replace(".", ""))
        for number in np.abs(numbers)
    ]
    return np.array_equal(numbers, expected.numpy()) and lengths <= shortest


def test_tokens(browser: Browser, page: Path, bert: Bert) -> None:
    browser.open(page)
    states = bert.states(PAIR, attentions=True)
    assert [button.text.split()[0] for button in browser.all("#strip button")] == states.tokens
    assert browser.text("h1").split("\n") == list(PAIR)
    mask = states.tokens.index("[MASK]")
    assert browser.all("#strip [aria-current=true]")[0].text.split() == ["[MASK]", str(mask)]
    from selenium.webdriver import ActionChains

    rus = browser.all("#strip button")[6]
    ActionChains(browser.driver).move_to_element(rus).perform()
    told = dict(plain(div.text).split("\n") for div in browser.all("#origin div"))
    assert (told["piece"], told["id"], told["word"]) == ("##rus", "10", "walrus (word 3)")
    assert (told["characters"], told["made of"], told["segment"]) == ("12 to 15", "rus", "0")
    assert browser.text("h1 mark") == "rus"


def test_attention_of_a_head(browser: Browser, page: Path, bert: Bert) -> None:
    states = bert.states(PAIR, attentions=True)
    assert states.attentions is not None
    browser.open(page)
    browser.click("#overview button", 1 * HEADS + 2)
    assert browser.text("#head-title") == "Head 2-3"
    assert "states.attentions[1, 2]" in browser.text("#head-note")
    for token in (0, 5, 11):
        browser.click("#strip button", token)
        rows = browser.table("row-table")
        assert [row[0] for row in rows] == states.tokens
        assert same_floats([row[2] for row in rows], states.attentions[1, 2, token])
        assert same_floats([row[3] for row in rows], states.attentions[1, 2, :, token])
        assert "33 of 289 weights" in browser.text("#drawn")
    browser.choose("layer", 3)
    browser.choose("head", 1)
    assert same_floats([row[2] for row in browser.table("row-table")], states.attentions[2, 0, 11])
    assert browser.all("#overview [aria-pressed=true]") == browser.all("#overview button")[6:7]
    # On the right of a line stands what the chosen token reads, on the left what reads it.
    shown = [float(small.text) for small in browser.all(".lines .read small")]
    assert shown == pytest.approx(states.attentions[2, 0, 11].numpy(), abs=6e-4)
    shown = [float(small.text) for small in browser.all(".lines .readers small")]
    assert shown == pytest.approx(states.attentions[2, 0, :, 11].numpy(), abs=6e-4)
    browser.click(".lines .readers button", 11)  # once more lets it go
    assert browser.text("#drawn") == "289 of 289 weights are shown."


def test_every_cell_of_the_matrix_can_be_read_and_copied(
    browser: Browser, page: Path, bert: Bert
) -> None:
    from selenium.webdriver import ActionChains

    states = bert.states(PAIR, attentions=True)
    assert states.attentions is not None
    head = states.attentions[1, 0]
    browser.open(page)
    canvas = browser.all("#matrix")[0]
    browser.run("arguments[0].focus()", canvas)
    browser.press(*[browser.keys.ARROW_DOWN] * 3, *[browser.keys.ARROW_RIGHT] * 20)
    label, number = browser.shown()
    assert label == "head 2-1, the (3) reads from [SEP] (16)"
    assert same_floats([number], head[3, 16:17])
    browser.press(browser.keys.ENTER)
    assert browser.copied() == number
    edge, size = browser.run("return [matrix.edge, matrix.size]")
    box = canvas.size
    at = [edge + (place + 0.5) * size - box["width"] / 2 for place in (4, 9)]  # column, row
    ActionChains(browser.driver).move_to_element_with_offset(canvas, *at).perform()
    label, number = browser.shown()
    assert label == "head 2-1, the (9) reads from wa (4)"
    assert same_floats([number], head[9, 4:5])
    ActionChains(browser.driver).click().perform()
    assert browser.copied() == number
    browser.click("#copy-matrix")
    browser.wait(lambda: "17 rows" in browser.text("#shown"))
    rows = [row.split("\t") for row in browser.copied().split("\n")]
    assert rows[0] == ["", *states.tokens]
    for row, expected in zip(rows[1:], head, strict=True):
        assert same_floats(row[1:], expected)


def test_a_click_to_pin_takes_no_longer_than_to_draw(browser: Browser, page: Path) -> None:
    """No function is called for each weight and each token, which at 512 would take a minute."""
    browser.open(page)
    browser.driver.execute_cdp_cmd("Profiler.enable", {})
    calls = {"callCount": True, "detailed": False}
    browser.driver.execute_cdp_cmd("Profiler.startPreciseCoverage", calls)
    browser.click("#strip button", 5)
    seen = browser.driver.execute_cdp_cmd("Profiler.takePreciseCoverage", {})["result"]
    browser.driver.execute_cdp_cmd("Profiler.disable", {})
    functions = [function for script in seen for function in script["functions"]]
    counts = {each["functionName"]: each["ranges"][0]["count"] for each in functions}
    assert counts["drawLines"] == 1
    assert max(each["ranges"][0]["count"] for each in functions) < 4 * 17**2


def test_the_overview_is_of_every_head(browser: Browser, page: Path, bert: Bert) -> None:
    attentions = bert.states(PAIR, attentions=True).attentions
    assert attentions is not None
    browser.open(page)
    pixels = browser.run(
        """return [...document.querySelectorAll("#overview canvas")].map((canvas) =>
        [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data]);"""
    )
    light = np.array(pixels).reshape(9, 17 * 17, 4)[..., :3].sum(axis=-1)
    for shades, weights in zip(light, attentions.flatten(2).flatten(0, 1).numpy(), strict=True):
        assert (np.diff(shades[weights.argsort()]) <= 0).all()
        assert shades.min() < 250 < 450 < shades.max()
    told = browser.run(
        """return [...document.querySelectorAll("#overview button")].map((button) => {
            button.focus();
            return document.getElementById("shown").textContent; });"""
    )
    shown = np.array([re.findall(r": (\S+) nats, (\S+) tokens", text)[0] for text in told])
    read = attentions.double().flatten(0, 1)
    entropy = torch.special.entr(read).sum(-1).mean(-1)
    places = torch.arange(17)
    distance = (read * (places[:, None] - places).abs()).sum(-1).mean(-1)
    assert shown.astype(float) == pytest.approx(torch.stack([entropy, distance], 1).numpy())
    assert told[5].startswith("head 2-3, mean entropy")


LINES = """const paths = document.querySelectorAll(".lines svg path[stroke-opacity]");
    return [...paths].flatMap((path) => {
        const found = path.getAttribute("d").matchAll(/M0 ([^L]+)L100 ([^M]+)/g);
        const opacity = path.getAttribute("stroke-opacity"), ink = path.getAttribute("stroke");
        return [...found].map(([, left, right]) =>
            [left / 1.6 - .5, right / 1.6 - .5, +opacity, ink === color("--blue")]);
    });"""


def test_lines_go_from_what_reads_to_what_is_read(browser: Browser, page: Path, bert: Bert) -> None:
    attentions = bert.states(PAIR, attentions=True).attentions
    assert attentions is not None
    head = attentions[1, 0].numpy()
    browser.open(page)
    lines = np.array(browser.run(LINES))
    left, right = lines[:, :2].round().astype(int).T
    assert len(set(zip(left, right, strict=True))) == 17 * 17
    assert (np.diff(lines[head[left, right].argsort(), 2]) >= 0).all()
    assert lines[:, 3].all()
    browser.click("#strip button", 11)
    lines = np.array(browser.run(LINES))
    left, right = lines[:, :2].round().astype(int).T
    is_blue = lines[:, 3] == 1
    assert (is_blue == (left == 11)).all()
    assert (right[~is_blue] == 11).all()
    assert (is_blue.sum(), (~is_blue).sum()) == (17, 16)
    for way in (is_blue, ~is_blue):
        opacity = lines[way, 2][head[left[way], right[way]].argsort()]
        assert (np.diff(opacity) >= 0).all()
        assert opacity[-1] == 1  # the strongest of each way can be seen


def test_words_by_clarks_rule(browser: Browser, page: Path, bert: Bert) -> None:
    states = bert.states(PAIR, attentions=True)
    assert states.attentions is not None
    expected = word_attention(states.attentions.double(), states.word_ids)
    browser.open(page)
    browser.choose("unit", "words")
    labels = ["[CLS]", "I", "am", "the", "walrus", ".", "[SEP]"]
    labels += ["the", "b", "[MASK]", "walrus", "a", "[SEP]"]
    assert [button.text for button in browser.all(".lines .readers button")] == labels
    browser.click(".lines .read button", 4)
    # Half a unit in the last place of float32: between words of one piece it is float32 that shows.
    reads, is_read = expected[1, 0, 4].numpy(), expected[1, 0, :, 4].numpy()
    assert browser.column("row-table", 2) == pytest.approx(reads, rel=6e-8)
    assert browser.column("row-table", 3) == pytest.approx(is_read, rel=6e-8)
    assert browser.all("#strip [aria-pressed=true]")[0].text.split() == ["wa", "4"]


def test_lines_can_be_filtered_and_read(browser: Browser, page: Path, bert: Bert) -> None:
    from selenium.webdriver import ActionChains

    states = bert.states(PAIR, attentions=True)
    assert states.attentions is not None
    head = states.attentions[1, 0]
    browser.open(page)
    browser.choose("filter", "RUS")
    assert browser.text("#drawn").startswith(f"{289 - 15 * 15} of 289")  # tokens 6 and 14
    soft = browser.run(
        """const style = (name, part) => getComputedStyle(document.querySelector(name), part);
        return [style(".lines .out"), style("#filter", "::placeholder"), style("#unpin")].map(
            ({ color, opacity }) => `${color} ${opacity}`);"""
    )
    assert soft == ["rgb(89, 97, 109) 1"] * 3  # as notes: can be read, but stands back
    browser.choose("filter", "no such token")
    assert browser.text("#drawn").startswith("0 of 289")
    browser.choose("filter", "")
    browser.choose("least", 0.1)
    assert browser.text("#least-value") == "0.10"
    assert browser.text("#drawn").startswith(f"{int((head >= 0.1).sum())} of 289")
    browser.choose("least", 0)
    browser.click("#bare")
    shown = [button.text for button in browser.all(".lines .readers button")]
    assert shown == [token for token in states.tokens if token not in ("[CLS]", "[SEP]")]
    assert browser.text("#drawn").startswith(f"{14 * 14} of 289 weights")
    assert "less than 1" in browser.text("#drawn")
    browser.click("#bare")
    browser.click("#strip button", 5)
    browser.click("#unpin")
    assert browser.text("#drawn") == "289 of 289 weights are shown."
    assert not browser.all("#unpin")[0].is_enabled()
    # A line is found by its place: at its left end the one of the token that reads itself.
    browser.choose("filter", "[MASK]")
    browser.click("#strip button", 11)
    svg = browser.all(".lines svg")[0]
    browser.run("arguments[0].scrollIntoView({block: 'center'})", svg)
    row = svg.size["height"] / 17
    at = (0, (11 + 0.5) * row - svg.size["height"] / 2)
    ActionChains(browser.driver).move_to_element_with_offset(svg, *at).perform()
    label, number = browser.shown()
    assert label == "head 2-1, [MASK] (11) reads from [MASK] (11)"
    assert same_floats([number], head[11, 11:12])


def test_similarity_at_any_state(browser: Browser, page: Path, bert: Bert) -> None:
    states = bert.states(PAIR, attentions=True).hidden_states.double()
    browser.open(page)
    for state, token in ((3, 11), (0, 2), (1, 14)):
        browser.choose("state", state)
        browser.click("#strip button", token)
        expected = torch.cosine_similarity(states[state, token], states[state], dim=-1)
        assert browser.column("similarity", 2) == pytest.approx(expected.numpy(), abs=1e-14)
        assert f"states.hidden_states[{state}]" in browser.text("#state-value")
        assert f"({token}) with every token, in state {state}" in browser.text("#similarity-title")
    cell = browser.all("#similarity td[data-value]")[3]
    browser.run("arguments[0].scrollIntoView({block: 'center'})", cell)
    cell.click()
    assert browser.copied() == browser.table("similarity")[3][2]


def test_path_and_length(browser: Browser, page: Path, bert: Bert) -> None:
    data = data_of(page.read_text())
    points = floats(data["texts"][0]["points"]).reshape(STATES, 17, 2)
    states = bert.states(PAIR, attentions=True).hidden_states.double()
    browser.open(page)
    browser.click("#strip button", 5)
    lengths = browser.column("path-table", 1)
    assert lengths == pytest.approx(states[:, 5].norm(dim=-1).numpy(), rel=1e-14)
    shown = np.array([[float(row[2]), float(row[3])] for row in browser.table("path-table")])
    assert np.array_equal(shown.astype(np.float32), points[:, 5])
    circles = browser.run(
        """return [...document.querySelectorAll("#path circle[role]")].map(
        (c) => [c.dataset.value, +c.getAttribute("cx"), +c.getAttribute("cy")])"""
    )
    assert [[float(n) for n in value.split(", ")] for value, _, _ in circles] == shown.tolist()
    # One unit is as long across as it is up.
    places = np.array([circle[1:] for circle in circles])
    steps, drawn = np.diff(shown, axis=0), np.diff(places, axis=0)
    assert drawn[:, 0] / steps[:, 0] == pytest.approx(-drawn[:, 1] / steps[:, 1], rel=1e-4)
    assert f"component 1, {100 * data['projection'][0]:.0f}% of" in browser.run(
        "return document.querySelector('#path').textContent"
    )


CIRCLES = """return [...document.querySelectorAll(arguments[0])].map((circle) => [
    ...circle.dataset.value.split(", ").slice(0, 2), circle.getAttribute("cx"),
    circle.getAttribute("cy")].map(Number));"""
CORNERS = """return [...document.querySelectorAll(arguments[0])].map((path) =>
    path.getAttribute("d").slice(1).split("L").map((corner) => corner.split(" ").map(Number)));"""


def is_straight(x: np.ndarray, y: np.ndarray) -> bool:
    """Whether y goes with x as on an axis: a line, to the rounding of what is drawn."""
    found = np.polyfit(x, y, 1)
    return bool(np.abs(np.polyval(found, x) - y).max() < 0.1 and found[0] != 0)


def test_charts_show_their_numbers(browser: Browser, page: Path, bert: Bert) -> None:
    states = bert.states(PAIR, attentions=True).hidden_states.double()
    points = floats(data_of(page.read_text())["texts"][0]["points"]).reshape(STATES, 17, 2)
    browser.open(page)
    browser.choose("state", 1)
    browser.click("#strip button", 5)
    others = np.array(browser.run(CIRCLES, "#path circle[aria-hidden]"))
    assert np.array_equal(others[:, :2].astype(np.float32), np.delete(points[1], 5, axis=0))
    own = np.array(browser.run(CIRCLES, "#path circle[role]"))
    dots = np.concatenate([others, own])
    assert is_straight(dots[:, 0], dots[:, 2])
    assert is_straight(dots[:, 1], dots[:, 3])
    (way,) = browser.run(CORNERS, "#path path[stroke-width='2']")
    assert np.array(way) == pytest.approx(own[:, 2:], abs=0.06)
    dots = np.array(browser.run(CIRCLES, "#norm circle"))
    lengths = states[:, 5].norm(dim=-1).numpy()
    assert is_straight(lengths, dots[:, -1])
    (line,) = browser.run(CORNERS, "#norm path[stroke-width='2']")
    assert np.array(line) == pytest.approx(dots[:, -2:], abs=0.06)
    # A bar begins in the middle, and goes to the left below 0.
    browser.choose("state", 0)
    bars = browser.run(
        """return [...document.querySelectorAll("#similarity rect")].map((bar) =>
        [+bar.getAttribute("x"), +bar.getAttribute("width"),
         bar.getAttribute("fill") === color("--blue")]);"""
    )
    cosines = browser.column("similarity", 2)
    assert (cosines < -0.05).any()
    ends = [50 + 50 * min(cosine, 0) for cosine in cosines]
    assert np.array([bar[0] for bar in bars]) == pytest.approx(np.array(ends))
    assert np.array([bar[1] for bar in bars]) == pytest.approx(50 * np.abs(cosines))
    assert [bar[2] for bar in bars] == list(cosines >= 0)


def test_each_pair_of_senses_has_a_line_of_its_own(
    browser: Browser, bert: Bert, tmp_path: Path
) -> None:
    path = tmp_path / "senses.html"
    path.write_text(lens_page(bert, ["a a i a a am a a"]), "utf-8")
    browser.open(path)
    lines = browser.run(CORNERS, "#senses > svg path[stroke-width='2']")
    dots = np.array(browser.run(CIRCLES, "#senses circle"))
    assert np.array(lines) == pytest.approx(dots[:, -2:].reshape(15, STATES, 2), abs=0.06)
    assert is_straight(dots[:, 0], dots[:, -1])
    assert np.ptp(dots[:, -1]) > 200  # of 242: they fill the chart
    styles = browser.run(
        """const style = (path) =>
            `${path.getAttribute("stroke")} ${path.getAttribute("stroke-dasharray")}`;
        return ["#senses > svg path[stroke-width='2']", "#senses .legend path"].map((which) =>
            [...document.querySelectorAll(which)].map(style));"""
    )
    assert len(set(styles[0])) == 15
    assert styles[0] == styles[1]


def test_senses_equal_compare(browser: Browser, bert: Bert, tmp_path: Path) -> None:
    texts = ["A walrus, a walrus.", "b am the WALRUS"]
    path = tmp_path / "senses.html"
    path.write_text(lens_page(bert, texts), "utf-8")
    expected = bert.compare("walrus", texts).similarity
    browser.open(path)
    assert plain(browser.all("#word option")[0].text) == "walrus (3 times)"
    assert [mark.text for mark in browser.all("#occurrences mark")] == ["walrus"] * 2 + ["WALRUS"]
    for column, (a, b) in enumerate([(0, 1), (0, 2), (1, 2)], start=1):
        shown = browser.column("senses-table", column)
        assert shown[1:] == pytest.approx(expected[1:, a, b], abs=2e-6)
    browser.click("#occurrences input", 1)  # untick the second
    assert browser.run("return document.getElementById('senses-table').rows[0].innerText") == (
        "state\t1 and 3"
    )
    assert browser.column("senses-table", 1)[1:] == pytest.approx(expected[1:, 0, 2], abs=2e-6)
    browser.choose("word", "a")
    assert len(browser.all("#occurrences label")) == 2
    # Several texts: one is looked at, and similarity goes across them.
    assert len(browser.table("similarity")) == 12 + 8
    browser.choose("text", 1)
    assert browser.text("h1") == texts[1]


def test_a_text_that_is_empty_or_cut_says_so(browser: Browser, bert: Bert, tmp_path: Path) -> None:
    path = tmp_path / "cut.html"
    path.write_text(lens_page(bert, ["", "a b am the walrus"], max_length=5), "utf-8")
    browser.open(path)
    assert browser.text("h1") == "(an empty text)"
    assert browser.driver.title == "(an empty text) – minibert lens"
    choices = [plain(option.text) for option in browser.all("#text option")]
    assert choices == ["1. (an empty text)", "2. a b am the walrus"]
    assert not browser.all("#cut")[0].is_displayed()
    browser.click("#copy")
    assert browser.text("#shown") == "Nothing is shown yet: point at a number first."
    browser.choose("text", 1)
    told = "Cut to 5 of its 9 tokens: the model read no more."
    assert browser.text("#cut") == told
    assert browser.text("#about").count(told) == 1


def test_no_word_comes_twice(browser: Browser, bert: Bert, tmp_path: Path) -> None:
    path = tmp_path / "once.html"
    path.write_text(lens_page(bert, ["a b"]), "utf-8")
    browser.open(path)
    assert browser.text("#senses-note").startswith("No word stands on this page more than once")
    assert not browser.all("#senses-body")[0].is_displayed()


def test_mask(browser: Browser, page: Path, bert: Bert) -> None:
    states = bert.states(PAIR, attentions=True).hidden_states
    browser.open(page)
    assert bert.head is not None
    with torch.no_grad():
        top = bert.head(BertOutput(states[:, 11], None)).softmax(-1).topk(5)
    script = """return [...document.getElementById("mask-table").tBodies[0].rows].map((row) =>
        [...row.querySelectorAll("td bdi")].map((piece) => piece.textContent))"""
    pieces = [[PIECES[i] for i in row] for row in top.indices.tolist()]
    assert browser.run(script) == pieces
    for row, expected in zip(browser.table("mask-table"), top.values, strict=True):
        assert [float(n) for n in row[1:]] == pytest.approx(expected.numpy(), abs=1e-6)
    browser.click("#strip button", 2)
    assert browser.run(script) != pieces
    browser.click("#mask-choice button")
    assert browser.run(script) == pieces


def test_chances_are_shown_with_two_digits(browser: Browser, page: Path) -> None:
    browser.open(page)
    chances = [float(n) for row in browser.table("mask-table") for n in row[1:]]
    shown = [small.text for small in browser.all("#mask-table td small")]
    assert shown == [f"{float(f'{100 * chance:.2g}'):g}%" for chance in chances]
    small = [1, 0.9949, 0.051, 0.0004, 0.00002149]
    assert browser.run("return arguments[0].map(percent)", small) == (
        ["100%", "99%", "5.1%", "0.04%", "0.0021%"]
    )


def test_every_table_can_be_copied(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.run("for (const one of document.querySelectorAll('details')) one.open = true")
    names = [button.get_attribute("data-copies") for button in browser.all("[data-copies]")]
    assert len(names) == 5
    for number, name in enumerate(names):
        browser.run("document.getElementById('shown').textContent = ''")
        browser.click("[data-copies]", number)
        header, *rows = [line.split("\t") for line in browser.copied().split("\n")]
        assert len(header) >= 2
        expected = browser.table(name)
        if name == "mask-table":  # a piece, and how likely it is
            pieces = iter([piece.text for piece in browser.all("#mask-table td bdi")])
            expected = [
                [row[0], *(x for n in row[1:] for x in (next(pieces), n))] for row in expected
            ]
            assert header[:3] == ["state", "1", "probability"]
        assert rows == [row[: len(header)] for row in expected]
        assert {len(row) for row in rows} == {len(header)}


def test_without_a_head_it_says_so(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(lens_page(make_bert(), ["a [MASK]"]), "utf-8")
    browser.open(path)
    assert "loaded without a masked-LM head" in browser.text("#mask-note")
    assert not browser.all("#mask-body")[0].is_displayed()


def test_what_made_the_page_is_on_it(
    browser: Browser, page: Path, bert: Bert, tmp_path: Path
) -> None:
    path = tmp_path / "page.html"
    source = Source("some/model", "0123abcd", {}, {}, None)
    path.write_text(lens_page(dataclasses.replace(bert, source=source), ["a b"]), "utf-8")
    browser.open(path)
    about = browser.text("#about")
    assert "model\nsome/model\ncommit\n0123abcd\n" in about
    assert "read by some/model: 3 layers" in browser.text("#under-title")
    shares = [float(share) for share in re.findall(r"component \d: ([0-9.e-]+)", about)]
    assert shares == data_of(path.read_text())["projection"]
    browser.open(page)
    about = browser.text("#about")
    assert "model\nnot from a file\ncommit\nnone: not from the Hub\n" in about
    assert f"minibert {importlib.metadata.version('minibert-pytorch')}" in about
    assert f"torch {torch.__version__}" in about
    assert " ||| ".join(PAIR) in about
    hashes = (data_of(page.read_text())["model"][name] for name in ("sha256", "head_sha256"))
    assert re.findall("sha256 ([0-9a-f]{64})", about) == list(hashes)
    assert "3 layers, 3 heads, 33 numbers a vector" in about


def test_with_the_keyboard_alone(browser: Browser, page: Path) -> None:
    browser.open(page)
    keys = browser.keys
    stops = []
    browser.run("document.body.focus()")
    for _ in range(40):
        browser.press(keys.TAB)
        stop = browser.run(
            """const at = document.activeElement;
            const outlined = getComputedStyle(at).outlineStyle !== "none";
            return [at.id || at.closest("[id]")?.id, outlined];"""
        )
        stops.append(stop[0])
        assert stop[1] or stop[0] is None, f"nothing shows that {stop[0]} has the focus"
    in_order = list(dict.fromkeys(stops))
    wanted = ["theme", "strip", "overview", "layer", "head", "unit", "filter", "least", "bare"]
    wanted += ["lines", "matrix", "copy-matrix", "state", "similarity", "path", "norm", "word"]
    wanted += ["senses-table", "senses", "mask-table", "copy"]
    assert [stop for stop in in_order if stop in wanted] == wanted
    browser.run("document.querySelector('#strip [tabindex=\"0\"]').focus()")
    browser.press(keys.HOME, keys.ARROW_RIGHT, keys.ARROW_RIGHT, keys.ENTER)
    assert browser.text("#strip [aria-pressed=true]").split() == ["am", "2"]
    assert "(2): blue is what it reads" in browser.text("#drawn")
    browser.press(keys.ESCAPE)
    assert browser.text("#drawn") == "289 of 289 weights are shown."
    browser.run("document.querySelector('#overview [tabindex=\"0\"]').focus()")
    browser.press(keys.ARROW_DOWN, keys.ARROW_RIGHT, keys.SPACE)
    assert browser.text("#head-title") == "Head 3-2"
    browser.press("c")  # copies what the readout has
    assert "nats" in browser.copied()


def test_every_number_can_be_reached_and_heard(browser: Browser, page: Path) -> None:
    """Each table and chart is one stop of the Tab key, and arrows go through its numbers."""
    browser.open(page)
    keys = browser.keys
    browser.run("for (const one of document.querySelectorAll('details')) one.open = true")
    for name in ("row-table", "similarity", "path-table", "senses-table", "mask-table"):
        (stop,) = browser.all(f"#{name} td[tabindex='0']")
        browser.run("arguments[0].focus()", stop)
        rows = [[n for n in row[1:] if "." in n or "e" in n] for row in browser.table(name)]
        assert browser.shown()[1] == rows[0][0]
        browser.press(keys.ARROW_DOWN)
        assert browser.shown()[1] == rows[1][0]
        browser.press(keys.END)
        assert browser.shown()[1] == rows[-1][-1]
        browser.press(keys.ARROW_RIGHT, keys.ARROW_UP)
        assert browser.shown()[1] == rows[-2][-1]
        heard = browser.attributes(f"#{name} [data-value]", "aria-label")
        numbers = [number for row in rows for number in row]
        assert all(said.endswith(n) for said, n in zip(heard, numbers, strict=True)), name
    for name in ("path", "norm", "senses"):
        assert len(browser.all(f"#{name} circle[tabindex='0']")) == 1
        heard = browser.attributes(f"#{name} circle[role=img]", "aria-label")
        numbers = browser.attributes(f"#{name} circle[role=img]", "data-value")
        assert all(said.endswith(f": {n}") for said, n in zip(heard, numbers, strict=True))
        browser.run("arguments[0].focus()", browser.all(f"#{name} circle[role=img]")[0])
        browser.press(keys.ARROW_RIGHT)
        assert ": ".join(browser.shown()) == plain(heard[1])
        browser.press(keys.ENTER)
        assert browser.copied() == numbers[1]


def test_roles_and_names(browser: Browser, page: Path) -> None:
    """What a screen reader needs: each control has a name, each table its headers."""
    browser.open(page)
    tree = browser.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles = {"button", "combobox", "slider", "checkbox", "searchbox", "toolbar", "application"}
    unnamed = [
        node["role"]["value"]
        for node in tree
        if not node["ignored"]
        and node["role"]["value"] in roles
        and not node.get("name", {}).get("value")
    ]
    assert unnamed == []
    for table in browser.all("table"):
        assert browser.run(
            "return arguments[0].caption !== null && arguments[0].tHead !== null", table
        )
    assert browser.run("return document.documentElement.lang") == "en"
    for name in ("drawn", "shown", "state-value"):  # what changes is said, without the focus
        assert browser.all(f"#{name}")[0].aria_role == "status"


def test_both_themes_and_print(browser: Browser, page: Path) -> None:
    background = "return getComputedStyle(document.body).backgroundColor"
    browser.open(page, theme="dark")
    assert browser.run(background) == "rgb(20, 23, 28)"
    browser.choose("theme", "light")
    assert browser.run(background) == "rgb(251, 250, 247)"
    browser.choose("theme", "dark")
    assert browser.run(background) == "rgb(20, 23, 28)"
    # What is drawn has the theme's colours, too: a cell of the matrix that is nearly zero.
    low = browser.run(
        """const { edge, size } = matrix, { all, N } = matrix;
        const n = all.indexOf(Math.min(...all)), row = Math.floor(n / N), column = n % N;
        const at = [edge + (column + .5) * size, edge + (row + .5) * size].map(Math.round);
        const canvas = document.getElementById("matrix").getContext("2d");
        return Math.max(...canvas.getImageData(...at, 1, 1).data.slice(0, 3));"""
    )
    assert low < 130
    browser.open(page, theme="light")
    assert browser.run(background) == "rgb(251, 250, 247)"
    browser.open(page, theme="dark")
    browser.run("dispatchEvent(new Event('beforeprint'))")
    assert browser.run("return document.documentElement.dataset.theme") == "light"
    browser.run("dispatchEvent(new Event('afterprint'))")
    assert browser.run("return document.documentElement.dataset.theme") == "dark"
    pdf = base64.b64decode(browser.driver.execute_cdp_cmd("Page.printToPDF", {})["data"])
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 5
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    style = """return [...document.querySelectorAll(arguments[0])].map((found) =>
        getComputedStyle(found)[arguments[1]]);"""
    for nothing in ("#readout", ".skip", ".controls", "button[data-copies]", "details"):
        assert set(browser.run(style, nothing, "display")) == {"none"}, nothing
    assert "none" not in browser.run(style, ".lines button, .strip button", "display")
    assert set(browser.run(style, ".scroll, .strip", "maxHeight")) == {"none"}
    assert set(browser.run(style, ".lines, .columns > figure:has(canvas)", "breakInside")) == {
        "avoid"
    }


def test_both_themes_can_be_read() -> None:
    """Text has a contrast of 4.5 to 1, graphics of 3 to 1: WCAG 2, 1.4.3 and 1.4.11."""
    style, script = ((ROOT / "minibert" / f"lens.{kind}").read_text() for kind in ("css", "js"))
    for theme in re.findall(r"^:root[^{]*\{(.*?)\}", style, re.DOTALL | re.MULTILINE):
        colors = dict(re.findall(r"--(\w+): #(\w{6})", theme))
        for name, least in {"ink": 4.5, "soft": 4.5, "blue": 4.5, "orange": 3, "high": 4.5}.items():
            for paper in ("paper", "card", "wash"):
                assert contrast(colors[name], colors[paper]) >= least, (name, paper)
        hues = re.findall(r'"#(\w{6})"', script.partition("HUES = [")[2].partition("]")[0])
        assert len(hues) == len(set(hues)) == 5
        assert min(contrast(hue, colors["paper"]) for hue in hues) >= 3
        assert min(contrast(colors["edge"], colors[paper]) for paper in ("paper", "card")) >= 3


def contrast(first: str, second: str) -> float:
    """Of two colours: WCAG 2.2, relative luminance."""

    def luminance(color: str) -> float:
        parts = [int(color[at : at + 2], 16) / 255 for at in (0, 2, 4)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear))

    light, dark = sorted([luminance(first), luminance(second)], reverse=True)
    return (light + 0.05) / (dark + 0.05)


NASTY = [
    "<script>document.title = 'run'</script>",
    "</script><script>document.title = 'run'</script>",
    "<!--<script>",
    "<img src=x onerror=\"document.title='run'\">",
    "{{script}} {{data}} &lt; &amp;",
    "a\u2028b\u2029c \x00 \"'\\",
]


def test_no_script_runs_but_that_of_the_page() -> None:
    page = lens_page(make_bert(), ["a"])
    (policy,) = re.findall(r'<meta http-equiv="Content-Security-Policy" content="(.*?)">', page)
    (style,) = re.findall("<style>(.*?)</style>", page, re.DOTALL)
    (script,) = re.findall("<script>(.*?)</script>", page, re.DOTALL)
    style, script = (
        f"'sha256-{base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()}'"
        for part in (style, script)
    )
    assert policy == f"default-src 'none'; style-src {style}; script-src {script}"


@pytest.mark.parametrize("text", NASTY)
def test_text_is_shown_and_not_run(browser: Browser, tmp_path: Path, text: str) -> None:
    path = tmp_path / "nasty.html"
    model = wide_model(99)
    bert = Bert(model.config, WordPieceTokenizer(PIECES, lowercase=True), model)
    path.write_text(lens_page(bert, [f"{text} a ||| a {text}"]), "utf-8")
    browser.open(path)
    assert browser.run("return document.scripts.length") == 2
    assert browser.run("return document.images.length") == 0
    assert browser.driver.title.endswith("minibert lens")
    assert browser.run("return document.getElementById('title').textContent") == (
        f"{text} a a {text}"
    )


def test_a_token_from_right_to_left_stays_in_its_place(browser: Browser, tmp_path: Path) -> None:
    """Where a sentence of the page has a token, its direction ends with it: Unicode's isolates."""
    path = tmp_path / "page.html"
    hebrew = "\u05d0\u05e0\u05d9"
    model = random_model(dataclasses.replace(ODD, vocab_size=len(PIECES) + 1))
    tokenizer = WordPieceTokenizer([*PIECES, hebrew], lowercase=True)
    bert = new_head(Bert(model.config, tokenizer, model), "masked-lm")
    path.write_text(lens_page(bert, [f"{hebrew} a {hebrew}"]), "utf-8")
    browser.open(path)
    browser.click("#strip button", 1)
    labels = browser.attributes("[data-label]", "data-label")
    labels += browser.attributes("[aria-label]:not(button, td)", "aria-label")
    parts = "figcaption, caption, .note, th[scope=col], option, dd:not([dir], #about dd)"
    labels += browser.run(
        "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)", parts
    )
    browser.run("document.getElementById('matrix').focus()")
    labels.append(browser.text("#shown"))
    with_token = [label for label in labels if hebrew in label]
    assert len(with_token) > 50
    assert browser.attributes("#origin dd", "dir") == [None] * 7
    assert [text for text in with_token if hebrew in re.sub("\u2068.*?\u2069", "", text)] == []


def wide_model(positions: int) -> BertModel:
    return random_model(dataclasses.replace(ODD, max_position_embeddings=positions))


TEXTS = {
    "nothing": "",
    "one token": "a",
    "emoji": "👩‍👩‍👧 walrus 🐋 walrus",
    "right to left": "אני הולך the walrus الى البيت the",
    "ideographs": "今日は walrus 今日は",
    "long word": "wa" + "l" * 90,
    "512 tokens": "the walrus . " * 102,
}


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("width", [400, 1280])
def test_any_text_at_any_width(browser: Browser, tmp_path: Path, kind: str, width: int) -> None:
    path = tmp_path / "page.html"
    model = wide_model(512)
    bert = Bert(model.config, WordPieceTokenizer(PIECES, lowercase=True), model)
    path.write_text(lens_page(bert, [TEXTS[kind]]), "utf-8")
    browser.open(path, width, "dark")
    page_width, window = browser.run(
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert page_width <= window
    states = bert.states(TEXTS[kind], attentions=True)
    assert states.attentions is not None
    assert len(browser.all("#strip button")) == len(states.tokens)
    browser.click("#strip button", min(3, len(states.tokens) - 1))
    browser.choose("unit", "words")
    browser.choose("state", 1)
    token = min(3, len(states.tokens) - 1)
    expected = torch.cosine_similarity(
        states.hidden_states[1, token].double(), states.hidden_states[1].double(), dim=-1
    )
    assert browser.column("similarity", 2) == pytest.approx(expected.numpy(), abs=1e-14)
    if len(states.tokens) == 512 and width == 400:
        judge_a_long_text(browser, states.attentions[1, 0].numpy())


def judge_a_long_text(browser: Browser, head: np.ndarray) -> None:
    browser.choose("unit", "tokens")
    browser.click("#unpin")
    assert browser.text("#drawn").startswith("The 2500 strongest of 262144 weights are shown")
    left, right = np.array(browser.run(LINES))[:, :2].round().astype(int).T
    assert sorted(head[left, right]) == sorted(head.flatten())[-2500:]
    # The names beside the matrix: some, with room between them.
    ink = browser.run(
        """const { edge, size } = matrix;
        const context = document.getElementById("matrix").getContext("2d");
        const { data } = context.getImageData(0, edge, edge - 3, 512 * size);
        const rows = Array.from({ length: 512 * size }, (_, y) =>
            data.subarray(4 * y * (edge - 3), 4 * (y + 1) * (edge - 3)).some((part) => part > 0));
        return rows.filter((has, y) => has && !rows[y - 1]).length;"""
    )
    assert 100 < ink < 350
    # Printed, the lines are on one page.
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert (
        browser.run("return document.querySelector('.lines svg').getBoundingClientRect().height")
        < 900
    )
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    browser.run("cursor.row = cursor.column = 400; document.getElementById('matrix').focus()")
    browser.press(browser.keys.ARROW_DOWN, browser.keys.ARROW_RIGHT)
    assert browser.run(
        """const { edge, size } = matrix, box = document.getElementById("matrix").parentElement;
        const at = edge + 401 * size;
        return box.scrollTop < at && at + size < box.scrollTop + box.clientHeight
            && box.scrollLeft < at && at + size < box.scrollLeft + box.clientWidth;"""
    )


def test_a_pair_is_no_batch(bert: Bert) -> None:
    """The page has the pair as the model reads it: with what capture sees of both at once."""
    encoding = bert.tokenizer.encode(*PAIR)
    ids, segments = (torch.tensor([n]) for n in (encoding.input_ids, encoding.token_type_ids))
    with torch.inference_mode(), capture(bert.model, "attentions") as seen:
        bert.model(ids, segments)
    (text,) = data_of(lens_page(bert, [" ||| ".join(PAIR)]))["texts"]
    assert np.array_equal(floats(text["attentions"][2]), seen.attentions[2].flatten().numpy())

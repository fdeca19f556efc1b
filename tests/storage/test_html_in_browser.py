"""An exported page in headless Chromium, where there is one: it works, asks for nothing and shows text as text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rnnsparse.data.tokenizer import Tokenizer
from rnnsparse.nn.language_model import CharLM
from rnnsparse.sampling import Sampler, SamplingConfig
from rnnsparse.settings.model import ModelConfig
from rnnsparse.storage.exports import Options, export
from rnnsparse.storage.html.packing import rounded
from tests.browser import CHROMIUM, Browser, browser

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")

TOKENIZER = Tokenizer.char('\n abcdefghijklmnop<>"/é時')
HOSTILE = "<img src=x onerror=\"document.title='run'\"></script><script>document.title='run'</script>"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("browser") / "home") as chromium:
        yield chromium


def model_of(tokenizer: Tokenizer) -> CharLM:
    model = CharLM(ModelConfig(embedding_dim=8, hidden_size=16, num_layers=2), tokenizer.vocab_size)
    for weight in model.sparse_weights().values():
        weight.connect(torch.arange(0, weight.positions, 2))
    model.reset_parameters(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6)
    return model


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    export(
        "html", model_of(TOKENIZER), TOKENIZER, folder / "char.html", Options(title="small", facts=[("Made", "here")])
    )
    hostile = Tokenizer.char(HOSTILE)
    export(
        "html", model_of(hostile), hostile, folder / "hostile.html", Options(title=HOSTILE, facts=[(HOSTILE, HOSTILE)])
    )
    return {path.stem: path for path in folder.iterdir()}


def fill(chromium: Browser, **values: Any) -> None:
    for name, value in values.items():
        chromium.evaluate(f"document.getElementById({json.dumps(name.replace('_', '-'))}).value = {json.dumps(value)}")


def press(chromium: Browser, selector: str, until: str) -> None:
    chromium.evaluate(f"document.querySelector({json.dumps(selector)}).click()")
    chromium.wait(until)


def text_of(chromium: Browser, name: str) -> str:
    return str(chromium.evaluate(f"document.getElementById('{name}').textContent"))


def opened(chromium: Browser, page: Path) -> None:
    chromium.open(page)
    chromium.wait("document.getElementById('state').textContent === 'Ready.'")


def write(chromium: Browser, button: str = "#go") -> str:
    press(chromium, button, "!document.getElementById('copy').disabled")
    return text_of(chromium, "written")


def use_every_view(chromium: Browser, text: str) -> None:
    """Write, score and look, each until it is done."""
    fill(chromium, prompt=text, length=80)
    write(chromium)
    for view in ("score", "look"):
        fill(chromium, **{f"{view}_text": text})
        press(chromium, f"#tab-{view}", f"!document.getElementById('{view}').hidden")
        press(chromium, f"#{view}-form .main", f"document.querySelectorAll('#{view} .text i').length > 0")
    press(chromium, "#tab-about", "!document.getElementById('about').hidden")


def test_it_works_and_asks_for_nothing(chromium: Browser, pages: dict[str, Path]) -> None:
    page = pages["char"]
    opened(chromium, page)
    use_every_view(chromium, "a cab é\nfed\n")
    assert len(text_of(chromium, "written")) == len("a cab é\nfed\n") + 80
    assert "bits per character" in text_of(chromium, "score-state")
    assert chromium.evaluate("document.querySelectorAll('#scored i').length") == 12
    assert text_of(chromium, "look-state").startswith("32 units, read over 12 characters")
    assert chromium.evaluate("document.querySelectorAll('#unit option').length") == 32
    assert chromium.evaluate("document.querySelectorAll('#gates canvas').length") == 2 + 4 * 3
    assert "GRU, 2 layers of 16 units" in text_of(chromium, "facts")
    assert "Madehere" in text_of(chromium, "facts")
    urls = {request["request"]["url"] for request in chromium.of("Network.requestWillBeSent")}
    assert {url for url in urls if not url.startswith("blob:")} == {page.as_uri()}
    complaints = [
        chromium.of(name) for name in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
    ]
    assert complaints == [[], [], []]


def test_it_writes_what_the_product_writes_and_goes_on_where_it_was(chromium: Browser, pages: dict[str, Path]) -> None:
    opened(chromium, pages["char"])
    fill(chromium, prompt="bad cab", temperature=0, length=150)
    written = write(chromium)
    model = rounded(model_of(TOKENIZER), "fp16")
    wanted = "".join(Sampler(model, TOKENIZER, "bad cab").stream(SamplingConfig(length=300, temperature=0)))
    assert written == "bad cab" + wanted[:150]
    assert write(chromium, "#go-on") == "bad cab" + wanted
    fill(chromium, stop_text=r"\n", temperature=1000, length=2000)
    assert "\n" not in write(chromium)
    assert "stopped before" in text_of(chromium, "write-state")


def test_a_text_without_end_can_be_stopped(chromium: Browser, pages: dict[str, Path]) -> None:
    opened(chromium, pages["char"])
    fill(chromium, length=10**9)
    press(chromium, "#go", "document.getElementById('written').textContent.length > 10")
    assert chromium.evaluate("document.getElementById('go').disabled")
    press(chromium, "#write-stop", "!document.getElementById('go-on').disabled")
    assert not chromium.evaluate("document.getElementById('go').disabled")
    assert 10 < len(text_of(chromium, "written")) < 10**8


def test_another_task_takes_the_place_of_one_that_goes_on(chromium: Browser, pages: dict[str, Path]) -> None:
    opened(chromium, pages["char"])
    fill(chromium, length=10**9, score_text="a cab")
    press(chromium, "#go", "document.getElementById('written').textContent.length > 10")
    press(chromium, "#score-form .main", "document.querySelectorAll('#scored i').length === 5")
    chromium.wait("document.getElementById('write-stop').disabled && document.getElementById('score-stop').disabled")


def test_what_cannot_be_read_is_said_in_words(chromium: Browser, pages: dict[str, Path]) -> None:
    opened(chromium, pages["char"])
    fill(chromium, prompt="xyz")
    press(chromium, "#go", "document.getElementById('write-state').textContent !== ''")
    assert text_of(chromium, "write-state") == 'The model does not know "x", "y", "z".'
    for text in ("", "a"):
        fill(chromium, score_text=text)
        press(chromium, "#score-form .main", "document.getElementById('score-stop').disabled")
        assert "at least two characters" in text_of(chromium, "score-state")


def test_nothing_of_a_model_or_of_what_is_typed_becomes_markup(chromium: Browser, pages: dict[str, Path]) -> None:
    opened(chromium, pages["hostile"])
    before = chromium.evaluate("document.querySelectorAll('script, img').length")
    use_every_view(chromium, HOSTILE)
    assert chromium.evaluate("document.querySelectorAll('script, img').length") == before == 4
    assert chromium.evaluate("document.title") == text_of(chromium, "title") == HOSTILE
    assert text_of(chromium, "written").startswith(HOSTILE)
    assert text_of(chromium, "scored").startswith(HOSTILE)
    assert text_of(chromium, "facts").count(HOSTILE) == 2


def test_it_lets_no_other_script_run_and_no_request_leave(chromium: Browser, pages: dict[str, Path]) -> None:
    intruder = pages["char"].with_name("intruder.html")
    run = "document.title = 'run'"
    script = f"<script>{run}</script><img src='https://example.org/x.png' onerror=\"{run}\">"
    intruder.write_text(
        pages["char"].read_text(encoding="utf-8").replace("<header>", f"{script}<header>"), encoding="utf-8"
    )
    opened(chromium, intruder)
    assert chromium.evaluate("document.title") == "small"
    assert chromium.evaluate("fetch('https://example.org').then(() => 'sent', () => 'refused')") == "refused"
    assert chromium.evaluate("new Image().src = 'https://example.org/y.png'; document.title") == "small"
    assert len(chromium.of("Log.entryAdded")) >= 3
    sent = [answer["response"]["url"] for answer in chromium.of("Network.responseReceived")]
    assert not [url for url in sent if url.startswith("http")]


@pytest.mark.parametrize("width", [390, 1200])
def test_nothing_is_wider_than_the_page(chromium: Browser, pages: dict[str, Path], width: int) -> None:
    for name in ("char", "hostile"):
        opened(chromium, pages[name])
        chromium.size(width, 800)
        use_every_view(chromium, "a" * 300 if name == "char" else HOSTILE)
        for view in ("write", "score", "look", "about"):
            press(chromium, f"#tab-{view}", f"!document.getElementById('{view}').hidden")
            assert chromium.evaluate("document.documentElement.scrollWidth") <= width


def test_views_and_characters_are_reached_by_keys(chromium: Browser, pages: dict[str, Path]) -> None:
    opened(chromium, pages["char"])
    chromium.evaluate("document.getElementById('tab-write').focus()")
    chromium.press("ArrowRight")
    assert chromium.evaluate("document.activeElement.id") == "tab-score"
    assert chromium.evaluate(
        "[...document.querySelectorAll('[role=tabpanel]')].filter(p => !p.hidden).map(p => p.id)"
    ) == ["score"]
    fill(chromium, score_text="bad\ncab")
    press(chromium, "#score-form .main", "document.querySelectorAll('#scored i').length === 7")
    chromium.evaluate("document.querySelector('#scored .text').focus()")
    detail = "document.querySelector('#scored .detail').textContent"
    assert chromium.evaluate(detail) == "b: the first, which nothing predicts."
    for _ in range(3):
        chromium.press("ArrowRight")
    assert chromium.evaluate(detail).startswith("line end: ")
    assert chromium.evaluate(detail).count("%") == 5

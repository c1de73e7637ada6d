"""The chat page, in a real browser over the real model."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import browser
import httpx
import pytest
from live_server import DEADLINE, health, listening, wait_idle
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

from aicc.runtime.artifact import Artifact
from aicc.runtime.generator import Model
from aicc.runtime.provider import DecoderExecutable
from aicc.runtime.server import AccessLog, ApiKeys, Front, Limits, create_app
from aicc.runtime.session import Session

pytestmark = pytest.mark.skipif(browser.found() is None, reason="no Chromium; `make browser` fetches one")
LONG = "Count from one to one thousand."


class Page:
    """The page as whoever sits before it sees it."""

    def __init__(self, driver: Chrome, url: str, log: Path) -> None:
        self.driver = driver
        self.url = url
        self.log = log
        driver.get_log("browser")  # what earlier tests left
        driver.get(f"{url}/")

    def one(self, id: str) -> WebElement:
        return self.driver.find_element(By.ID, id)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def wait(self, condition: Any) -> None:
        WebDriverWait(self.driver, DEADLINE, poll_frequency=0.02).until(lambda _: condition())

    def ready(self) -> "Page":
        self.wait(lambda: "runs on" in self.one("place").text)
        return self

    def ask(self, text: str) -> None:
        self.one("text").send_keys(text + "\n")

    def answered(self) -> str:
        """The newest answer, when it has ended."""
        self.wait(lambda: self.all(".assistant") and not self.all(".busy"))
        return self.all(".assistant .words")[-1].text

    def streaming(self) -> None:
        self.wait(lambda: self.all(".busy .words") and self.all(".busy .words")[-1].text)

    def set(self, id: str, value: str) -> None:
        """Change a setting in the dialog."""
        self.one("open-settings").click()
        field = self.one(id)
        field.clear()
        field.send_keys(value)
        self.driver.find_element(By.CSS_SELECTOR, "#settings button").click()

    def bodies(self) -> list[Any]:
        """What was asked of the server, read from its log."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [json.loads(line["body"]) for line in lines if "body" in line]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with browser.chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@contextmanager
def serving(
    models: dict[str, Model | Session], folder: Path, limits: Limits, keys: ApiKeys | None = None
) -> Iterator[str]:
    front = Front(keys=keys, access_log=AccessLog(folder / "log", prompts=True))
    with listening(create_app(models, limits, front)) as url:
        yield url


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def chat_url(executable: DecoderExecutable, demo_artifact: Artifact, encoder: Session, folder: Path) -> Iterator[str]:
    """Two language models, of which each takes one sequence, and an encoder."""
    models = {name: Model(executable, demo_artifact, target="openvino:cpu") for name in ("one", "two")}
    with serving({**models, "encoder": encoder}, folder, Limits(sequences=1)) as url:
        yield url


@pytest.fixture
def page(driver: Chrome, chat_url: str, folder: Path) -> Iterator[Page]:
    page = Page(driver, chat_url, folder / "log").ready()
    yield page
    driver.get("about:blank")  # which hangs up
    for model in httpx.get(f"{chat_url}/health/ready").json()["models"]:
        assert model["status"] == "ready"


def test_it_streams_an_answer_and_says_how_fast_and_where(page: Page, demo_artifact: Artifact) -> None:
    page.set("temperature", "0")
    page.ask("Name the capital of France.")

    assert "Paris" in page.answered()
    assert page.all(".user .words")[0].text == "Name the capital of France."
    facts = page.all(".facts")[0].text
    assert "tokens/s" in facts
    assert "first after" in facts
    assert "openvino:cpu" in page.one("place").text
    assert page.one("said").get_attribute("textContent") == f"Answer complete: {page.answered()}"
    assert page.driver.get_log("browser") == []


def test_a_conversation_goes_on_and_a_new_one_begins_empty(page: Page) -> None:
    page.set("temperature", "0")
    page.set("tokens", "8")
    page.ask("My name is Ada.")
    first = page.answered()
    page.ask("What is my name?")
    page.wait(lambda: len(page.all(".assistant")) == 2)
    page.answered()
    page.one("new").click()
    page.ask("Hello")
    page.answered()

    *_, second, third = [body["messages"] for body in page.bodies()]
    assert [(m["role"], m["content"]) for m in second] == [
        ("user", "My name is Ada."),
        ("assistant", first),
        ("user", "What is my name?"),
    ]
    assert [m["content"] for m in third] == ["Hello"]
    assert len(page.all("#turns li")) == 2


@pytest.mark.parametrize("how", ["button", "escape"])
def test_stopping_ends_the_generation_on_the_server(page: Page, chat_url: str, how: str) -> None:
    page.ask(LONG)
    page.streaming()
    if how == "button":
        page.one("stop").click()
    else:
        page.one("text").send_keys(Keys.ESCAPE)
    text = page.answered()

    assert text
    assert "stopped" in page.all(".facts")[-1].text
    page.wait(lambda: all(m["sequences"] == 0 for m in httpx.get(f"{chat_url}/health/ready").json()["models"]))


def test_a_new_chat_in_the_middle_of_an_answer_is_empty(page: Page) -> None:
    page.ask(LONG)
    page.streaming()
    page.one("new").click()
    page.set("tokens", "4")
    page.wait(lambda: page.one("send").is_displayed())
    page.ask("Hello")
    page.answered()

    assert [m["content"] for m in page.bodies()[-1]["messages"]] == ["Hello"]


def test_the_settings_are_what_is_asked(page: Page) -> None:
    page.set("system", "Answer in French.")
    page.set("temperature", "0.5")
    page.set("tokens", "3")
    page.ask("Hello")
    page.answered()

    asked = page.bodies()[-1]
    assert asked["messages"][0] == {"role": "system", "content": "Answer in French."}
    assert (asked["temperature"], asked["max_tokens"]) == (0.5, 3)
    assert "cut off" in page.all(".facts")[-1].text


def test_models_that_chat_can_be_chosen(page: Page) -> None:
    model = Select(page.one("model"))
    assert [option.text for option in model.options] == ["one", "two"]
    page.set("tokens", "2")
    model.select_by_visible_text("two")
    page.ask("Hello")
    page.answered()

    assert page.bodies()[-1]["model"] == "two"


MARKUP = "<img src=x onerror=alert(1)><b>bold</b> `<i>code</i>` &amp; <script>alert(2)</script>"


def test_text_is_never_markup(page: Page) -> None:
    page.set("tokens", "2")
    page.ask(MARKUP)
    page.answered()

    words = page.all(".user .words")[0]
    assert words.text == MARKUP.replace("`", "")
    assert [e.tag_name for e in words.find_elements(By.CSS_SELECTOR, "*")] == ["code"]


def test_blocks_of_code_are_shown_as_they_are(page: Page) -> None:
    page.set("tokens", "2")
    text = "Look:\n```python\nif a < b:\n    print(`a`)\n```\nDone."
    page.ask(text.replace("\n", Keys.SHIFT + Keys.ENTER + Keys.SHIFT))
    page.answered()

    assert page.all(".user pre")[0].get_attribute("textContent") == "if a < b:\n    print(`a`)"
    assert "```" not in page.all(".user .words")[0].text


def test_a_server_with_enough_to_do_is_shown_and_the_question_is_kept(page: Page, chat_url: str) -> None:
    body = {"model": "one", "prompt": "Once", "max_tokens": 8000, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{chat_url}/v1/completions", json=body, timeout=DEADLINE) as answer:
        lines = answer.iter_lines()
        next(lines)
        page.ask("Hello")
        page.wait(lambda: page.all(".trouble"))

        assert "Try again later" in page.all(".trouble")[0].text
        assert page.all(".trouble")[0].get_attribute("role") == "alert"
        assert page.one("text").get_attribute("value") == "Hello"


def test_it_asks_nobody_but_its_own_server(page: Page) -> None:
    page.set("tokens", "2")
    page.ask("Hello")
    page.answered()

    asked = page.driver.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert asked
    assert all(name.startswith(f"{page.url}/") for name in asked)


def test_the_browser_is_told_to_run_nothing_else(chat_url: str) -> None:
    for path in ("/", "/page/app.js", "/page/style.css", "/page/icon.svg"):
        answer = httpx.get(f"{chat_url}{path}")
        policy = answer.headers["content-security-policy"]
        assert answer.status_code == 200
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 1200])
def test_it_fits_every_width_in_both_themes(page: Page, theme: str, width: int) -> None:
    emulate = page.driver.execute_cdp_cmd
    emulate("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": theme}]})
    size = {"width": width, "height": 700, "deviceScaleFactor": 1, "mobile": width < 1000}
    emulate("Emulation.setDeviceMetricsOverride", size)
    try:
        page.set("tokens", "2")
        page.ask("x" * 300)
        page.answered()
        script = """
          const root = document.documentElement;
          const light = (color) => color.match(/\\d+/g).slice(0, 3).reduce((sum, one) => sum + Number(one), 0);
          const style = getComputedStyle(document.body);
          return [root.scrollWidth, root.scrollHeight, light(style.backgroundColor), light(style.color)];
        """
        wide, high, paper, ink = page.driver.execute_script(script)
    finally:
        emulate("Emulation.clearDeviceMetricsOverride", {})
        emulate("Emulation.setEmulatedMedia", {"features": []})

    assert (wide, high) == (width, 700)
    assert (paper > ink) == (theme == "light")
    assert abs(paper - ink) > 400


def test_everything_to_use_has_a_name_and_is_reached_by_keyboard(page: Page) -> None:
    for control in page.all("button, select, textarea, input"):
        if control.is_displayed():
            assert control.accessible_name, control.get_attribute("outerHTML")
    names = []
    page.one("text").send_keys("Hello")
    for _ in range(4):
        names.append(page.driver.switch_to.active_element.accessible_name)
        page.driver.switch_to.active_element.send_keys(Keys.SHIFT + Keys.TAB)

    assert names == ["Your message", "New chat", "Settings", "Model"]


def test_a_server_with_keys_asks_for_one_once(
    driver: Chrome, executable: DecoderExecutable, demo_artifact: Artifact, tmp_path: Path
) -> None:
    model = Model(executable, demo_artifact)
    with serving({"model": model}, tmp_path, Limits(), ApiKeys([b"right-key"])) as url:
        page = Page(driver, url, tmp_path / "log").ready()
        page.wait(lambda: page.one("key").is_displayed())
        page.one("key-text").send_keys("wrong-key\n")
        page.wait(lambda: "not taken" in page.one("key-note").text)
        page.one("key-text").send_keys("right-key\n")
        page.wait(lambda: not page.one("key").is_displayed())
        page.set("temperature", "0")
        page.set("tokens", "2")
        page.ask("Hello")
        assert page.answered()
        driver.refresh()
        page.ready()
        page.wait(
            lambda: driver.execute_script("return performance.getEntriesByName(arguments[0])", f"{url}/v1/models")
        )

        assert not page.one("key").is_displayed()
        assert "right-key" not in driver.page_source
        driver.get("about:blank")
        wait_idle(url)


def test_a_server_that_is_gone_is_said(driver: Chrome, model: Model, tmp_path: Path) -> None:
    with serving({"model": model}, tmp_path, Limits()) as url:
        assert health(url)["status"] == "ready"
        page = Page(driver, url, tmp_path / "log").ready()
    page.ask("Hello")
    page.wait(lambda: page.all(".trouble"))

    assert page.all(".trouble")[0].text == "The server cannot be reached."
    assert page.one("text").get_attribute("value") == "Hello"

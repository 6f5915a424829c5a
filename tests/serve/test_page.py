"""The page to chat on: what is sent, and how it behaves in a headless Chromium.

Debian's packages: chromium, chromium-driver. Without them, or without selenium, only what is sent
is tested.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from http_server import Service, eventually, running

from infer_os.runtime.settings import StopSettings
from infer_os.serve.page import POLICY
from infer_os.serve.scripted_engine import ScriptedEngine

EVIL = "<img src=x onerror=\"document.title='hacked'\"><script>document.title='hacked'</script>"


def reply(prompt: bytes) -> str:
    """Repeats what the last message says behind "say "; else one that takes its time."""
    last = prompt.decode("utf-8", "replace").split("user: ")[-1].strip()
    return last.removeprefix("say ") if last.startswith("say ") else "word " * 2000


class Slow(ScriptedEngine):
    """Takes long enough for a hand to press Stop."""

    def step(self, begins: Callable[[], None]) -> bool:
        time.sleep(0.001)
        return super().step(begins)


@pytest.fixture
def service() -> Iterator[Service]:
    with running(Slow(reply, n_ctx=20_000), stops=StopSettings(-1)) as found:
        yield found


def test_what_is_sent(service: Service) -> None:
    page = service.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    text = page.body.decode()
    kinds = {".js": "text/javascript", ".css": "text/css", ".ico": "image/svg+xml"}
    files = re.findall(r'(?:src|href)="(/[^"]+)"', text)
    assert len(files) == 3
    for path in files:
        got = service.get(path)
        assert got.status == 200
        assert got.headers["content-type"].startswith(kinds[f".{path.split('.')[-1]}"])
    for path in ("/", "/chat.js", "/chat.css"):
        got = service.get(path)
        assert got.headers["content-security-policy"] == POLICY
        assert got.headers["x-content-type-options"] == "nosniff"
        assert got.headers["referrer-policy"] == "no-referrer"
        # nothing of another host, nothing inline
        said = got.body.decode()
        assert not re.search(r"https?://|//[a-z]+\.", re.sub(r"^ *//.*$", "", said, flags=re.M))
    assert not re.search(r"<script>|\son\w+=|style=|javascript:", text)
    assert "innerHTML" not in service.get("/chat.js").body.decode()


def test_every_word_is_there_in_both_languages(service: Service) -> None:
    script = service.get("/chat.js").body.decode()
    english, japanese = re.findall(r"^  (?:en|ja): \{\n(.*?)^  \},", script, re.M | re.S)
    keys = [set(re.findall(r"(\w+): (?:\"|\()", part)) for part in (english, japanese)]
    assert keys[0] == keys[1]
    used = set(
        re.findall(r'data-(?:text|label|placeholder)="(\w+)"', service.get("/").body.decode())
    )
    assert used <= keys[0]
    assert set(re.findall(r'word\("(\w+)"\)', script)) <= keys[0]


# ---- in a browser


@pytest.fixture(scope="module")
def make_browser() -> Iterator[Callable[..., Any]]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    programs = shutil.which("chromium"), shutil.which("chromedriver")
    if None in programs:
        pytest.skip("needs Debian's chromium and chromium-driver")
    made: list[Any] = []

    def make(*more: str) -> Any:
        options = webdriver.ChromeOptions()
        options.binary_location = programs[0]
        for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", *more):
            options.add_argument(word)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        browser = webdriver.Chrome(options, webdriver.ChromeService(programs[1]))
        made.append(browser)
        return browser

    yield make
    for browser in made:
        browser.quit()


@pytest.fixture(scope="module")
def window(make_browser: Callable[..., Any]) -> Any:
    return make_browser("--lang=en-US")


class Page:
    """The page of a service in a browser."""

    def __init__(self, browser: Any, service: Service) -> None:
        self.browser, self.service = browser, service
        browser.set_window_size(1200, 800)
        browser.get(service.url)
        eventually(lambda: self.of("#model").text == "fake", "the page does not know its model")

    def of(self, selector: str) -> Any:
        return self.browser.find_element("css selector", selector)

    def texts(self) -> list[str]:
        # at once: elements may be replaced between two questions
        script = "return [...document.querySelectorAll('article .text')].map((e) => e.innerText)"
        return list(self.browser.execute_script(script))

    def say(self, text: str) -> None:
        self.of("#message").send_keys(text, "\ue007")

    def expect(self, *texts: str) -> None:
        eventually(lambda: self.texts() == list(texts), f"{texts} is not there: {self.texts()}")
        eventually(lambda: self.of("#send").is_displayed(), "it does not end")

    def press(self, name: str) -> None:
        eventually(lambda: self.of("#send").is_displayed(), "something runs still")
        self.browser.find_elements("xpath", f"//article//button[.='{name}']")[-1].click()


@pytest.fixture
def page(window: Any, service: Service) -> Iterator[Page]:
    found = Page(window, service)
    window.execute_script("localStorage.clear()")
    window.refresh()
    eventually(lambda: found.of("#model").text == "fake", "the page does not come back")
    yield found
    complaints = [entry for entry in window.get_log("browser") if entry["level"] == "SEVERE"]
    assert [c for c in complaints if "failed to load" not in c["message"].lower()] == []


def test_a_conversation_is_kept(page: Page) -> None:
    page.say("say one")
    page.expect("say one", "one")
    page.say("say two")
    page.expect("say one", "one", "say two", "two")
    assert re.search(r"tokens/s · context \d+ of 20000 tokens · memory \d+ MB",
                     page.of("#readout").text)  # fmt: skip
    page.browser.refresh()
    page.expect("say one", "one", "say two", "two")
    page.of("#new").click()
    page.expect()
    assert page.browser.switch_to.active_element == page.of("#message")


def test_a_models_text_is_never_html(page: Page) -> None:
    page.say(f"say {EVIL}")
    page.expect(f"say {EVIL}", EVIL)
    page.browser.refresh()
    page.expect(f"say {EVIL}", EVIL)
    assert page.browser.title == "Infer-OS"
    assert page.browser.find_elements("css selector", "main img, main script") == []


def test_stop_retry_and_edit(page: Page) -> None:
    page.say("go on")
    eventually(lambda: len(page.texts()) == 2 and "word" in page.texts()[1], "nothing is streamed")
    page.of("#stop").click()
    eventually(lambda: page.of("#send").is_displayed(), "it does not stop")
    eventually(lambda: page.service.get("/status").json["running"] == 0, "the server computes on")
    assert page.texts()[1].startswith("word")
    page.press("Edit")
    assert page.of("#message").get_attribute("value") == "go on"
    page.of("#message").clear()
    page.say("say a")
    page.expect("say a", "a")
    page.press("Retry")
    page.expect("say a", "a")


def test_the_settings_are_sent(page: Page) -> None:
    page.of("#open-settings").click()
    page.of("[name=max_tokens]").send_keys("3")
    page.of("[name=system]").send_keys("Be brief.")
    page.say("say abcdef")
    page.expect("say abcdef", "abc")
    page.browser.refresh()
    assert page.of("[name=max_tokens]").get_attribute("value") == "3"
    assert page.of("[name=system]").get_attribute("value") == "Be brief."


def test_an_error_is_said_and_can_be_tried_again(page: Page) -> None:
    page.of("#open-settings").click()
    page.of("[name=temperature]").send_keys("-1")
    page.say("say a")
    eventually(lambda: "temperature" in page.of("#fault").text, "nothing is said of it")
    page.of("[name=temperature]").clear()
    page.press("Retry")
    page.expect("say a", "a")
    assert not page.of("#fault").is_displayed()


def test_japanese_and_what_a_screen_reader_hears(page: Page) -> None:
    page.of("#open-settings").click()
    page.browser.find_element("css selector", "option[value=ja]").click()
    assert page.of("#send").text == "送信"
    assert page.of("html").get_attribute("lang") == "ja"
    page.say("say こんにちは")
    page.expect("say こんにちは", "こんにちは")
    eventually(lambda: "こんにちは" in page.of("#said").get_attribute("textContent"), "not told")
    for element in page.browser.find_elements("css selector", "button, input, textarea, select"):
        hidden = not element.is_displayed()
        assert hidden or element.accessible_name, element.get_attribute("outerHTML")


def test_enter_that_ends_a_conversion_sends_nothing(page: Page) -> None:
    page.of("#message").send_keys("say にほんご")
    press = (
        "document.querySelector('#message').dispatchEvent(new KeyboardEvent('keydown', "
        "{key: 'Enter', isComposing: arguments[0], bubbles: true, cancelable: true}))"
    )
    page.browser.execute_script(press, True)
    assert page.texts() == []
    assert page.of("#message").get_attribute("value") == "say にほんご"
    page.browser.execute_script(press, False)
    page.expect("say にほんご", "にほんご")


def test_the_width_of_a_phone(page: Page) -> None:
    page.say("say " + "x" * 200)
    page.expect("say " + "x" * 200, "x" * 200)
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
        "width": 360, "height": 700, "deviceScaleFactor": 1, "mobile": True,
    })  # fmt: skip
    try:
        wide = page.browser.execute_script("return document.documentElement.scrollWidth")
        assert wide <= 360
        assert not page.of("#side").is_displayed()
        page.of("#open-side").click()
        assert page.of("#side").is_displayed()
        page.of("#new").click()
        assert not page.of("#side").is_displayed()
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_key_is_asked_for(window: Any) -> None:
    with running(ScriptedEngine(reply), api_key="sesame") as service:
        window.get(service.url)
        fault = window.find_element("css selector", "#fault")
        eventually(lambda: "Bearer" in fault.text, "nobody asks for it")
        window.find_element("css selector", "#open-settings").click()
        window.find_element("css selector", "[name=key]").send_keys("sesame", "\t")
        model = window.find_element("css selector", "#model")
        eventually(lambda: model.text == "fake", "the key does not help")
        stored = window.execute_script("return JSON.stringify(localStorage)")
        assert "sesame" not in stored

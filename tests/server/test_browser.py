"""The page at ``/`` in a real browser; needs the browser extra and a Chromium."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.browser import chromium
from tests.support.http_server import running, until
from tests.support.thinking import thinker
from tests.support.tool_cases import TOOLS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.http_server import Running

pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings("ignore")]

KEY = "a-key-of-the-page"
SPAIN, MADRID = "What is the capital of Spain?", "The capital of Spain is Madrid."
LONG = json.dumps({"min_tokens": 4000})


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


class Visit:
    """A page that somebody has open, and every complaint of the browser about it."""

    def __init__(self, browser: Any, url: str, **options: Any) -> None:
        self.context = browser.new_context(viewport={"width": 1200, "height": 800}, **options)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda one: self.complaints.append(one.text))
        self.page.goto(url)

    def ask(self, text: str) -> None:
        self.page.fill("#question", text)
        self.page.press("#question", "Enter")

    def answers(self) -> list[str]:
        return self.page.locator("article.assistant > .text").all_inner_texts()

    def until(self, holds: str) -> None:
        """Wait until something holds; the page's policy lets no wait of its own in."""
        until(lambda: self.page.evaluate(holds))

    def until_done(self, answers: int) -> None:
        ended = "document.querySelectorAll('article.assistant footer:not([hidden])').length"
        self.until(f"{ended} == {answers}")

    def until_streaming(self) -> int:
        """Wait until some of an answer is there and more comes; return how long it is by then."""
        length = "document.querySelector('article:last-child > .text').textContent.length"
        self.until(f"document.querySelector('.busy') && {length} > 20")
        seen = self.page.evaluate(length)
        self.until(f"document.querySelector('.busy') && {length} > {seen}")
        return seen

    def set(self, **fields: str) -> None:
        for name, value in fields.items():
            self.page.fill(f"#{name}", value)

    def requests(self) -> list[dict[str, Any]]:
        """List the bodies of what the page asks for from now on, as they are sent."""
        sent: list[dict[str, Any]] = []
        self.page.on(
            "request", lambda one: one.method == "POST" and sent.append(json.loads(one.post_data))
        )
        return sent

    def scrolls_sideways(self) -> bool:
        return self.page.evaluate(
            "[document.documentElement, document.body, document.getElementById('log')]"
            ".some((one) => one.scrollWidth > one.clientWidth)"
        )


@pytest.fixture
def visit(browser: Any, server: Running) -> Iterator[Visit]:
    one = Visit(browser, server.url)
    yield one
    one.context.close()
    assert one.complaints == []


def test_a_conversation_of_two_turns(visit: Visit) -> None:
    sent = visit.requests()
    visit.set(system="Answer.", temperature="0", max_tokens="40", seed="7", top_p="0.5")
    visit.ask(SPAIN)
    visit.until_done(1)
    assert visit.answers() == [MADRID]
    note = visit.page.inner_text("article footer span")
    assert re.fullmatch(r"\d+ tokens in, 8 out · [\d.]+ tokens/s · first after [\d.]+ s", note)
    visit.ask("What is the capital of Italy?")
    visit.until_done(2)
    assert visit.answers()[1] == "The capital of Italy is Rome."
    assert visit.page.inner_text("#status") == "Answered."
    first, second = sent
    assert first == {
        "model": "demo", "temperature": 0, "top_p": 0.5, "max_tokens": 40, "seed": 7,
        "messages": [{"role": "system", "content": "Answer."}, {"role": "user", "content": SPAIN}],
        "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    assert second["messages"] == [
        *first["messages"],
        {"role": "assistant", "content": MADRID},
        {"role": "user", "content": "What is the capital of Italy?"},
    ]
    visit.page.click("#new")
    assert visit.answers() == []
    visit.ask(SPAIN)
    visit.until_done(1)
    assert sent[2]["messages"] == first["messages"]


@pytest.mark.parametrize("way", ["button", "Escape"])
def test_a_long_answer_streams_in_and_is_stopped(visit: Visit, server: Running, way: str) -> None:
    before = server.metric("requests_cancelled_total")
    visit.set(more=LONG)
    visit.ask(SPAIN)
    seen = visit.until_streaming()
    visit.page.click("#stop") if way == "button" else visit.page.keyboard.press("Escape")
    visit.until_done(1)
    assert visit.page.inner_text("#status") == "Stopped."
    assert visit.page.inner_text("article footer span").endswith("stopped")
    (answer,) = visit.answers()
    assert len(answer) > seen
    assert visit.page.evaluate("document.activeElement.id") == "question"
    visit.until("!document.getElementById('send').hidden")
    until(lambda: server.metric("requests_cancelled_total") == before + 1)
    visit.set(more="")
    visit.page.click("#new")
    visit.ask(SPAIN)
    visit.until_done(1)
    assert visit.answers() == [MADRID]


def test_a_reload_keeps_the_conversation(visit: Visit) -> None:
    visit.set(temperature="0")
    visit.ask(SPAIN)
    visit.until_done(1)
    visit.set(more=LONG, question="half a que")
    visit.page.reload()
    assert visit.answers() == [MADRID]
    assert visit.page.input_value("#temperature") == "0"
    assert visit.page.input_value("#more") == LONG
    assert visit.page.input_value("#question") == "half a que"
    visit.ask(SPAIN)
    visit.until_streaming()
    visit.page.reload()
    assert len(visit.answers()) == 2
    assert len(visit.answers()[1]) > 20
    visit.set(more="")
    visit.ask("What is the capital of Italy?")
    visit.until_done(3)
    other = visit.context.browser.new_context().new_page()  # another tab, another conversation
    other.goto(visit.page.url)
    assert other.locator("article").count() == 0
    other.context.close()


def test_the_key(browser: Any, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(KEY, encoding="utf-8")
    with running(api_key_file=str(file)) as served:
        visit = Visit(browser, served.url)
        visit.until("!document.getElementById('key-form').hidden")
        assert visit.page.is_hidden("#error")
        assert visit.page.evaluate("document.activeElement.id") == "key"
        visit.set(key="another-key")
        visit.page.press("#key", "Enter")
        visit.until("!document.getElementById('error').hidden")
        assert "not one that the server knows" in visit.page.inner_text("#error")
        visit.ask(SPAIN)
        visit.until("document.getElementById('question').value != ''")
        assert visit.page.input_value("#question") == SPAIN
        assert visit.page.locator("article").count() == 0
        visit.set(key=KEY)
        visit.page.press("#key", "Enter")
        visit.until("document.getElementById('key-form').hidden")
        visit.page.press("#question", "Enter")
        visit.until_done(1)
        assert visit.answers() == [MADRID]
        visit.page.reload()
        visit.until("document.getElementById('model').value == 'demo'")
        assert visit.page.is_hidden("#key-form")
        assert visit.page.evaluate("localStorage.length + document.cookie.length") == 0
        assert visit.page.url == f"{served.url}/"
        visit.context.close()


def test_errors_are_told_in_words(visit: Visit) -> None:
    visit.set(more='{"top_k": "many"}')
    visit.ask(SPAIN)
    visit.until("!document.getElementById('error').hidden")
    assert "top_k must be an integer" in visit.page.inner_text("#error")
    assert visit.page.input_value("#question") == SPAIN
    assert visit.complaints.pop().startswith("Failed to load resource")
    for bad in ("[]", "{", "3", "null"):
        visit.set(more=bad)
        visit.page.press("#question", "Enter")
        visit.until("document.getElementById('error').textContent.includes('JSON object')")
    visit.set(more="", temperature="3")
    visit.page.press("#question", "Enter")
    assert visit.page.evaluate("document.activeElement.id") == "temperature"
    visit.set(temperature="")
    visit.page.route("**/v1/chat/completions", lambda route: route.abort())
    visit.page.press("#question", "Enter")
    visit.until("document.getElementById('error').textContent.includes('cannot be reached')")
    visit.page.unroute("**/v1/chat/completions")
    sent = visit.requests()
    visit.page.press("#question", "Enter")
    visit.until_done(1)
    assert visit.page.is_hidden("#error")
    assert sent[0]["messages"] == [{"role": "user", "content": SPAIN}]
    visit.complaints[:] = [one for one in visit.complaints if "ERR_FAILED" not in one]


def test_an_error_within_a_stream_keeps_what_has_come(browser: Any) -> None:
    with running(timeout=1.5) as served:
        visit = Visit(browser, served.url)
        visit.set(more=LONG)
        visit.ask(SPAIN)
        visit.until("!document.getElementById('error').hidden")
        assert "not finished within 1.5 seconds" in visit.page.inner_text("#error")
        assert len(visit.answers()[0]) > 20
        assert visit.page.inner_text("article footer span").endswith("not finished")
        assert visit.complaints == []
        visit.context.close()


def test_tool_calls_and_their_results(visit: Visit) -> None:
    sent = visit.requests()
    visit.set(temperature="0", more=json.dumps({"tools": TOOLS[:1]}))
    visit.ask("What is the weather in Paris?")
    visit.until_done(1)
    shown = json.loads(visit.page.inner_text("article pre"))
    assert shown == {"name": "get_weather", "arguments": {"city": "Paris"}}
    assert visit.page.inner_text("#question-label") == "Result of get_weather"
    visit.ask("Sunny")
    visit.until_done(2)
    asked, call, result = sent[1]["messages"]
    assert asked["content"] == "What is the weather in Paris?"
    assert result == {
        "role": "tool", "content": "Sunny", "tool_call_id": call["tool_calls"][0]["id"],
    }  # fmt: skip
    assert visit.page.inner_text("#question-label") == "Message"


def test_reasoning_is_folded(browser: Any, demo: Path, tmp_path: Path) -> None:
    folder = thinker(demo, tmp_path / "thinker")
    with running({"thinking": str(folder)}) as served:
        visit = Visit(browser, served.url)
        visit.ask("What is the weather in Paris?")
        visit.until_done(1)
        thought = visit.page.locator("article details .text")
        assert not thought.is_visible()
        visit.page.click("article summary")
        assert "get_weather" in thought.inner_text()
        visit.context.close()


def test_text_is_never_html(visit: Visit) -> None:
    visit.ask("<img src=x onerror=alert(1)><b>bold</b>")
    visit.until_done(1)
    assert visit.page.locator("article.user .text").inner_text().endswith("<b>bold</b>")
    assert visit.page.locator("article img, article b").count() == 0


def test_the_keyboard_alone(visit: Visit) -> None:
    page = visit.page
    assert page.evaluate("document.activeElement.id") == "question"
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    assert page.input_value("#question") == "one\ntwo"
    page.keyboard.press("Enter")
    visit.until_done(1)
    reached: list[str] = []
    for _ in range(30):
        page.keyboard.press("Tab")
        name = page.evaluate("document.activeElement.id || document.activeElement.tagName")
        reached.append(name)
        if name not in ("BODY", "HTML"):
            assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    wanted = {"model", "new", "system", "temperature", "top_p", "max_tokens", "seed", "more"}
    assert wanted | {"question", "send", "log", "SUMMARY", "BUTTON"} <= set(reached)
    unnamed = page.evaluate(
        "[...document.querySelectorAll('input, textarea, select')]"
        ".filter((one) => !one.labels.length).map((one) => one.id)"
    )
    assert unnamed == []


def test_copy(browser: Any, server: Running) -> None:
    visit = Visit(browser, server.url, permissions=["clipboard-read", "clipboard-write"])
    visit.set(temperature="0")
    visit.ask(SPAIN)
    visit.until_done(1)
    visit.page.click("text=Copy")
    visit.until("document.querySelector('article footer button').textContent == 'Copied'")
    assert visit.page.evaluate("navigator.clipboard.readText()") == MADRID
    visit.context.close()


@pytest.mark.parametrize("width", [320, 360, 800, 1200])
def test_no_width_scrolls_sideways(visit: Visit, width: int) -> None:
    visit.page.set_viewport_size({"width": width, "height": 640})
    visit.page.reload()
    assert visit.page.evaluate("document.getElementById('settings').open") is (width > 799)
    visit.ask("w" * 500)
    visit.until_done(1)
    assert not visit.scrolls_sideways()
    visit.page.evaluate("document.getElementById('settings').open = true")
    assert not visit.scrolls_sideways()
    assert visit.page.locator("#question").bounding_box()["y"] < 640
    assert visit.page.locator("#send").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out(browser: Any, server: Running, scheme: Any) -> None:
    visit = Visit(browser, server.url, color_scheme=scheme)
    visit.ask(SPAIN)
    visit.until_done(1)
    for selector in ("body", "#about-model", "article.user .text", "article footer", "#send"):
        assert visit.page.evaluate(CONTRAST, selector) >= 4.5, selector
    visit.context.close()


CONTRAST = """(selector) => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map((part) => part / 255)
      .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const element = document.querySelector(selector);
  let back = element;
  while (getComputedStyle(back).backgroundColor.endsWith(", 0)")) back = back.parentElement;
  const both = [getComputedStyle(element).color, getComputedStyle(back).backgroundColor].map(light);
  return (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
}"""
"""How a text's colour contrasts with what is behind it, as WCAG computes it."""

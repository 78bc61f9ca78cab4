"""The page in a real browser: `pytest -m browser`, with playwright and a Chromium (CHROMIUM names
it, /usr/bin/chromium otherwise).
"""

import os
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the extra pocketlm[serve]")
pytest.importorskip("uvicorn", reason="needs the extra pocketlm[serve]")

from pocketlm.commands.serve import buttons
from pocketlm.serve.http_server import ServeConfig
from tests.serve.running import Running, running
from tests.serve.scripted import scripted_checkpoint
from tests.serve.spoken_backend import SpokenBackend

pytestmark = pytest.mark.browser

ANSWERS = {
    "Solve": "<think>Seven goes first.</think>Take 7 from both sides: $3x = 15$.\n\n\\[\nx = "
    "\\frac{15}{3}\n\\]\n\nIt costs $5 or $6. $\\boxed{5}$",
    "function": "Here:\n\n```python\nprint('abc'[::-1], 6 * 7)\n```\n\n"
    "| a | b |\n|---|---|\n| 1 | 2 |",
    "evil": "<script>window.hacked=1</script><img src=x onerror='window.hacked=1'>"
    "[x](javascript:window.hacked=1) ![p](http://127.0.0.1:1/p.png) "
    "$\\href{javascript:window.hacked=1}{y}$",
    "long": "word " * 400,
}


@pytest.fixture(scope="module")
def backend() -> SpokenBackend:
    return SpokenBackend(ANSWERS, wait=0.005)


@pytest.fixture(scope="module")
def served(backend: SpokenBackend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = scripted_checkpoint(tmp_path_factory.mktemp("scripted"))
    with running(folder, backend, ServeConfig(port=0), buttons(alone=True)) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright  # type: ignore[import-not-found]

    with sync_playwright() as playwright:
        program = os.environ.get("CHROMIUM", "/usr/bin/chromium")
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any, served: Running) -> Iterator[Any]:
    """The page in a profile of its own; whatever its console complains of fails the test."""
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda line: complaints.append(line.text) if line.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(f"http://127.0.0.1:{served.port}/")
    until(page, "document.title.includes('\u00b7')")
    yield page
    context.close()
    assert not complaints


def until(page: Any, condition: str) -> None:
    """Waits for a JavaScript expression; the page's policy forbids playwright's own way."""
    for _ in range(600):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never came true: {condition}")


def ask(page: Any, question: str, role: str = "none") -> None:
    page.select_option("#preset", role)
    page.fill("#question", question)
    page.press("#question", "Enter")


def answered(page: Any) -> None:
    page.wait_for_selector("text=Try again")


def test_mathematics_is_set_thinking_is_folded_and_an_own_answer_is_checked(page: Any) -> None:
    ask(page, "Solve 3x + 7 = 22", "maths")
    answered(page)
    assert page.locator(".text .katex").count() == 3
    assert page.locator(".katex-display").count() == 1
    assert "$5 or $6" in page.inner_text("article.assistant")
    assert page.locator("details.thinking[open]").count() == 0
    assert page.inner_text("summary").startswith("Thought, ")
    assert page.inner_text("summary").endswith(" tokens")
    page.click("summary")
    assert "Seven goes first." in page.inner_text("details")
    page.fill(".check input", "x=5")
    page.click("text=Check")
    page.wait_for_selector("text=Equal to the model's.")
    page.fill(".check input", "6")
    page.click("text=Check")
    page.wait_for_selector("text=Not equal to the model's 5.")


def test_a_program_of_an_answer_is_run(page: Any) -> None:
    ask(page, "a function, please", "python")
    answered(page)
    assert page.locator(".hljs-built_in").count() > 0
    assert page.locator("table td").count() == 2
    page.click("text=Run")
    page.wait_for_selector("text=Finished")
    assert page.inner_text(".output pre").strip() == "cba 42"


def test_nothing_in_an_answer_can_run_or_fetch(page: Any) -> None:
    fetched: list[str] = []
    page.on("request", lambda request: fetched.append(request.url))
    ask(page, "evil")
    answered(page)
    assert page.evaluate("window.hacked") is None
    assert page.locator("article.assistant img, article.assistant script").count() == 0
    assert page.locator("a[href^=javascript]").count() == 0
    assert all("/v1/" in url or "vendor/fonts" in url for url in fetched), fetched


def test_esc_stops_the_server_s_work_and_a_reload_keeps_what_was_said(
    page: Any, backend: SpokenBackend
) -> None:
    before = backend.left_early
    ask(page, "a long one")
    until(page, "document.querySelector('article.assistant').innerText.length > 40")
    page.keyboard.press("Escape")
    page.wait_for_selector(".facts:has-text('stopped')")
    page.wait_for_timeout(300)
    assert backend.left_early == before + 1
    page.reload()
    page.wait_for_selector(".facts:has-text('stopped')")
    assert page.inner_text("article.user").startswith("a long one")
    assert page.locator("#conversations li").count() == 1


def test_a_question_is_edited_and_an_answer_made_anew_without_its_thinking(
    page: Any, backend: SpokenBackend
) -> None:
    ask(page, "Solve it")
    answered(page)
    ask(page, "hi")
    until(page, "document.querySelectorAll('article').length === 4")
    page.wait_for_selector("article:last-child >> text=Try again")
    assert "Seven goes first" not in backend.prompts[-1]
    page.locator("article.user >> text=Edit").first.click()
    page.fill("article textarea", "hello")
    page.click("text=Send again")
    until(page, "document.querySelectorAll('article').length === 2")
    answered(page)
    assert page.inner_text("article.user .text") == "hello"
    before = len(backend.prompts)
    page.click("text=Try again")
    page.wait_for_timeout(300)
    answered(page)
    assert len(backend.prompts) == before + 1


def test_two_tabs_keep_one_list(page: Any, served: Running) -> None:
    other = page.context.new_page()
    other.goto(f"http://127.0.0.1:{served.port}/")
    until(other, "document.title.includes('\u00b7')")
    for tab, question in ((page, "first"), (other, "second"), (page, "third")):
        ask(tab, question)
        until(tab, "document.getElementById('send').textContent === 'Send'")
    page.reload()
    page.wait_for_selector("#conversations >> text=second")
    assert page.locator("#conversations li").count() == 2
    assert page.locator("article.user").count() == 2


def test_a_phone_sees_the_conversation_and_opens_the_list(page: Any) -> None:
    ask(page, "hi")
    answered(page)
    page.set_viewport_size({"width": 375, "height": 700})
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 375
    assert page.locator("#side").is_hidden()
    page.click("#menu")
    page.wait_for_selector("#conversations >> text=hi")
    page.keyboard.press("Escape")
    page.wait_for_selector("#side", state="hidden")


def test_settings_reach_the_model_and_dark_stays(page: Any, backend: SpokenBackend) -> None:
    page.click("#show-settings")
    page.fill("#system", "Speak like a sailor.")
    page.fill("#temperature", "3")
    page.fill("#temperature", "0.5")
    page.click("#settings button")
    ask_only = page.locator("#question")
    ask_only.fill("hi")
    ask_only.press("Enter")
    answered(page)
    assert "Speak like a sailor." in backend.prompts[-1]
    page.click("#theme")
    page.reload()
    page.wait_for_selector("html[data-theme=dark]")


@pytest.mark.parametrize("width", [375, 1200])
def test_axe_finds_nothing(page: Any, width: int) -> None:
    from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-not-found]

    ask(page, "Solve it", "maths")
    answered(page)
    page.set_viewport_size({"width": width, "height": 800})
    page.wait_for_timeout(200)
    for _ in ("light", "dark"):
        violations = Axe().run(page).response["violations"]
        assert not violations, [(v["id"], v["nodes"][0]["html"]) for v in violations]
        if width == 1200:
            page.click("#theme")

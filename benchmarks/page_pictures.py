"""Pictures of the page, for the documents: a real model answers in a real browser.

    python benchmarks/page_pictures.py MODEL docs/pictures

needs playwright and a Chromium (CHROMIUM names it, /usr/bin/chromium otherwise). Writes
page-light.png, page-dark.png and page-phone.png.
"""

import os
import sys
from pathlib import Path
from typing import Any

from serving import served

TALKS = {  # picture -> (width, height, dark, role, questions)
    "page-light": (1000, 640, False, "python", ["Write a function that reverses a string."]),
    "page-dark": (1000, 640, True, "science", ["What is photosynthesis?"]),
    "page-phone": (375, 640, False, "science", ["Why is the sky blue?"]),
}


def picture(browser: Any, address: str, name: str, folder: Path) -> None:
    width, height, dark, role, questions = TALKS[name]
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
    )
    page = context.new_page()
    page.goto(address)
    page.wait_for_selector("#meter:has-text('context left')")
    page.click("#show-settings")
    page.fill("#temperature", "0")
    page.fill("#max_tokens", "160")
    page.click("#settings button")
    page.select_option("#preset", role)
    for question in questions:
        page.fill("#question", question)
        page.press("#question", "Enter")
        page.wait_for_selector("article:last-child >> text=Try again", timeout=300_000)
        print(f"{name}: {page.inner_text('article:last-child')}\n")
    run = page.locator("text=Run")
    if run.count():
        run.first.click()
        page.wait_for_selector(".output >> text=/Finished|Ended/", timeout=60_000)
    page.evaluate("document.getElementById('log').scrollTop = 0")
    page.screenshot(path=folder / f"{name}.png")
    context.close()


def main() -> None:
    from playwright.sync_api import sync_playwright  # type: ignore[import-not-found]

    model, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    named = ("--name", Path(model).stem)
    with served(model, "--threads", "1", *named) as server, sync_playwright() as playwright:
        program = os.environ.get("CHROMIUM", "/usr/bin/chromium")
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for name in TALKS:
            picture(browser, f"http://127.0.0.1:{server.port}/", name, folder)
        browser.close()


if __name__ == "__main__":
    main()

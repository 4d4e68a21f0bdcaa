"""The page in a real browser: make test-web, with Debian's chromium."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_models import chat_model
from serve.conftest import serving

CHROMIUM = shutil.which("chromium")
pytestmark = [pytest.mark.web, pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")]
SYSTEM = "mojanago -> MOJANAGO\ndish -> DISH"
SHOTS = os.environ.get("OUTSIZE_SCREENSHOTS")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_model(tmp_path_factory.mktemp("web") / "model")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture(scope="module")
def url(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(folder, tmp_path_factory.mktemp("cache")) as (address, _):
        yield address


@pytest.fixture
def page(browser: Any, url: str) -> Iterator[Any]:
    with browser.new_context(viewport={"width": 1200, "height": 800}) as context:
        made = context.new_page()
        wrong: list[str] = []
        made.on("pageerror", lambda error: wrong.append(str(error)))
        made.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        made.goto(url)
        made.get_by_text("ready", exact=True).wait_for()
        yield made
        assert not [text for text in wrong if "ERR_CONNECTION_REFUSED" not in text]


def shoot(page: Any, name: str) -> None:
    if SHOTS:
        page.screenshot(path=str(Path(SHOTS) / f"{name}.png"))


def ask(page: Any, text: str) -> None:
    page.get_by_label("Message").fill(text)
    page.keyboard.press("Enter")


def idle(page: Any) -> None:
    page.locator("#send:not([disabled])").wait_for()


def answers(page: Any) -> list[str]:
    return [str(text).strip() for text in page.locator(".assistant > div").all_inner_texts()]


def test_send_and_regenerate(page: Any) -> None:
    page.get_by_label("System prompt").fill(SYSTEM)
    ask(page, "jift")
    page.get_by_text("the first after").wait_for()
    assert answers(page) == ["JIFT"]
    shoot(page, "light")
    page.get_by_role("button", name="Regenerate").click()
    page.get_by_text("were known").wait_for()
    assert answers(page) == ["JIFT"]
    assert page.locator("#layers li").count() > 8
    page.get_by_role("button", name="New chat").click()
    assert answers(page) == []


def test_stop(page: Any) -> None:
    page.get_by_label("Temperature").fill("5")
    page.get_by_label("Top-p").fill("1")
    for number in range(8):  # until an answer is long enough to be stopped
        ask(page, f"a{number}b")
        page.locator(".assistant").last.wait_for()
        page.evaluate("document.getElementById('stop').click()")
        idle(page)
        if page.get_by_text("stopped", exact=True).count():
            break
    assert page.get_by_text("stopped", exact=True).count()
    page.get_by_label("Temperature").fill("0")
    ask(page, "jift")
    page.get_by_text("the first after").last.wait_for()


def test_dark_narrow_and_by_keyboard(browser: Any, url: str) -> None:
    with browser.new_context(color_scheme="dark", viewport={"width": 360, "height": 740}) as context:
        page = context.new_page()
        page.goto(url)
        page.get_by_text("ready", exact=True).wait_for()
        back = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert back == "rgb(21, 23, 26)"
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.get_by_label("System prompt").fill(SYSTEM)
        page.get_by_label("Message").focus()
        page.keyboard.type("jift")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")  # Send
        page.get_by_text("the first after").wait_for()
        assert answers(page) == ["JIFT"]
        shoot(page, "dark")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(browser: Any, url: str, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    with browser.new_context(color_scheme=scheme, bypass_csp=True) as context:
        page = context.new_page()
        page.goto(url)
        page.get_by_text("ready", exact=True).wait_for()
        ask(page, "jift")
        page.get_by_text("the first after").wait_for()
        found = axe.Axe().run(page).response["violations"]
        assert not [(one["id"], one["impact"]) for one in found if one["impact"] in ("serious", "critical")]


def test_a_server_that_goes_and_comes_back(browser: Any, folder: Path, tmp_path: Path) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        with serving(folder, tmp_path) as (url, process):
            page.goto(url)
            page.get_by_text("ready", exact=True).wait_for()
            process.terminate()
            page.get_by_text("the server is gone").wait_for()
        ask(page, "jift")
        page.get_by_text("no answer").wait_for()
        with serving(folder, tmp_path, "--port", url.rpartition(":")[2]):
            page.get_by_text("ready", exact=True).wait_for()
            page.get_by_role("button", name="Regenerate").click()
            page.get_by_text("the first after").wait_for()

# SPDX-License-Identifier: Apache-2.0
"""Debian's Chromium without a screen, that draws with the processor."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import pytest

FLAGS = (
    *("headless=new", "no-sandbox", "window-size=1280,800"),
    *("use-gl=angle", "use-angle=swiftshader", "enable-unsafe-swiftshader"),
    *("no-first-run", "disable-quic", "disable-background-networking", "disable-component-update", "disable-sync"),
)
PATIENCE_S = 60.0


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser of its own; the test is skipped where there is none."""
    driver = shutil.which("chromedriver")
    if not (driver and shutil.which("chromium")):
        pytest.skip("no chromium with chromedriver on this machine: apt-get install chromium chromium-driver")
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    with TemporaryDirectory() as profile:
        options = ChromeOptions()
        for flag in (*FLAGS, f"user-data-dir={profile}"):
            options.add_argument(f"--{flag}")
        chrome = Chrome(options, ChromeService(driver))
        try:
            yield Browser(chrome)
        finally:
            chrome.quit()


class Browser:
    """What a user does with a live page, and sees of it."""

    def __init__(self, chrome) -> None:
        self.chrome = chrome

    def open(self, address: str) -> None:
        self.chrome.get(address)

    def until(self, condition: Callable[[], object]) -> None:
        end = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < end, f"waited in vain; the page says: {self.text()}"
            time.sleep(0.2)

    def text(self) -> str:
        """All that is written on the page."""
        return self.chrome.execute_script("return document.body.innerText")

    def figure(self, name: str) -> str:
        """What stands beside a name in the table of figures; empty: nothing yet."""
        script = """return [...document.querySelectorAll("tr")].find(r => r.cells[0].innerText == arguments[0])
            ?.cells[1].innerText ?? "" """
        return self.chrome.execute_script(script, name)

    def press(self, text: str) -> None:
        """A button or a tab, with that text on it."""
        script = """return [...document.querySelectorAll("button, [role=tab]")]
            .find(b => b.innerText.trim() == arguments[0])"""
        self.until(lambda: self.chrome.execute_script(script, text))
        self.chrome.execute_script(script, text).click()

    def buttons(self) -> set[str]:
        """What stands on those that there are."""
        script = "return [...document.querySelectorAll('button')].map(b => b.innerText.trim())"
        return set(self.chrome.execute_script(script))

    def slider(self, label: str):
        """The handle of the slider beside that label."""
        return self._beside(label, "[role=slider]")

    def choose(self, label: str, option: str) -> None:
        """What the menu beside that label offers."""
        self._beside(label, "input").click()
        script = "return [...document.querySelectorAll('[role=option]')].find(o => o.innerText == arguments[0])"
        self.until(lambda: self.chrome.execute_script(script, option))
        self.chrome.execute_script(script, option).click()

    def _beside(self, label: str, what: str):
        """The element of that kind, as CSS selects it, nearest to a label."""
        script = """let e = [...document.querySelectorAll("label")].find(l => l.innerText == arguments[0]);
            while (e && !e.querySelector(arguments[1])) e = e.parentElement;
            return e?.querySelector(arguments[1])"""
        self.until(lambda: self.chrome.execute_script(script, label, what))
        return self.chrome.execute_script(script, label, what)

    def labels(self) -> list[str]:
        """What stands beside the inputs that there are."""
        return self.chrome.execute_script("return [...document.querySelectorAll('label')].map(l => l.innerText.trim())")

    def drawn(self) -> float:
        """The share of the middle of the window, where no panel is, that is not white; 0 if it draws for too long."""
        from selenium.common import TimeoutException

        try:
            png = np.frombuffer(self.chrome.get_screenshot_as_png(), np.uint8)
        except TimeoutException:
            return 0.0
        middle = cv2.imdecode(png, cv2.IMREAD_COLOR)[200:600, 330:860]
        return float((middle < 250).any(-1).mean())

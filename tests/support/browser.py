"""Chromium for tests: a page's elements after its script has run, and one that a test uses through WebDriver.

Source: the W3C's WebDriver protocol, as chromedriver speaks it over loopback.
"""

import base64
import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
needs_webdriver = pytest.mark.skipif(
    CHROMIUM is None or CHROMEDRIVER is None, reason="chromium and chromedriver are not both installed"
)
_SEC = 120
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # WebDriver's name for a reference to an element
_ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu"]


def in_browser(page: Path, *options: str) -> subprocess.CompletedProcess:
    """Open a page and return its elements (stdout) and what the browser complains of (stderr)."""
    command = [CHROMIUM, *_ARGUMENTS, f"--user-data-dir={page.parent / 'profile'}"]
    command += ["--enable-logging=stderr", "--v=0", *options, "--dump-dom", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=_SEC, check=True)


class Browser:
    """A Chromium that a test uses; to be closed (a context manager).

    Args:
        profile: folder that it may fill.
    """

    def __init__(self, profile: Path) -> None:
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
        self._driver = subprocess.Popen(
            [CHROMEDRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        try:
            said = next(line for line in self._driver.stdout if "started successfully" in line)
            port = re.search(r"on port (\d+)", said)[1]
            self._address = f"http://127.0.0.1:{port}"
            options = {"binary": CHROMIUM, "args": [*_ARGUMENTS, f"--user-data-dir={profile}"]}
            wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
            session = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
            self._address += f"/session/{session['sessionId']}"
        except BaseException:
            self._driver.kill()
            self._driver.wait()
            raise

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._ask("DELETE", "")
        finally:
            self._driver.terminate()
            self._driver.wait()
            self._driver.stdout.close()

    def open(self, address: str) -> None:
        self._ask("POST", "/url", {"url": address})

    def screen(self, width: int, height: int, scheme: str = "light") -> None:
        """Set the page's size, which may be smaller than a window can be, and whether it is light or dark."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._command("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._command("Emulation.setEmulatedMedia", {"features": features})

    def script(self, text: str) -> Any:
        """Return what a script returns."""
        return self._ask("POST", "/execute/sync", {"script": text, "args": []})

    def text(self, selector: str) -> str:
        return self._ask("GET", f"/element/{self._find(selector)}/text")

    def click(self, selector: str) -> None:
        self._ask("POST", f"/element/{self._find(selector)}/click", {})

    def type(self, selector: str, text: str) -> None:
        """Type text; for a file's field, its path."""
        self._ask("POST", f"/element/{self._find(selector)}/value", {"text": text})

    def until(self, condition: Callable[[], Any]) -> Any:
        """Return what a condition gives once it is true."""
        end = time.monotonic() + _SEC
        while not (found := condition()):
            assert time.monotonic() < end, f"not on the page: {self.script('return document.body.innerText')}"
            time.sleep(0.05)
        return found

    def complaints(self) -> list[str]:
        """Return what the browser's console has said since the last call."""
        return [line["message"] for line in self._ask("POST", "/se/log", {"type": "browser"})]

    def screenshot(self) -> bytes:
        """Return what is seen, as PNG."""
        return base64.b64decode(self._ask("GET", "/screenshot"))

    def _find(self, selector: str) -> str:
        return self._ask("POST", "/element", {"using": "css selector", "value": selector})[_ELEMENT]

    def _command(self, name: str, parameters: dict[str, Any]) -> None:
        self._ask("POST", "/goog/cdp/execute", {"cmd": name, "params": parameters})

    def _ask(self, method: str, path: str, content: dict[str, Any] | None = None) -> Any:
        body = None if content is None else json.dumps(content).encode()
        kind = {"Content-Type": "application/json"}
        request = urllib.request.Request(self._address + path, body, kind, method=method)
        try:
            with self._open(request, timeout=_SEC) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(json.load(error)["value"]["message"]) from error

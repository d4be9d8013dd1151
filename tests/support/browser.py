"""A real Chromium without a window, driven over a pair of pipes, where the machine has one.

The Chrome DevTools Protocol: JSON messages, each ended by a zero byte, on descriptors 3 and 4 of the browser
(``--remote-debugging-pipe``), so that nothing listens on a port.
"""

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

CHROMIUM: Final = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium: Final = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")

_PATIENCE_S: Final = 60
_QUIET: Final = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
    "--disable-default-apps", "--no-default-browser-check", "--force-color-profile=srgb",
)  # fmt: skip
"""Without a window, and without a word to anybody; the sandbox does not start for root."""


class Page:
    """One page of a browser."""

    def __init__(self, writing: int, reading: int) -> None:
        self._writing, self._reading = writing, reading
        self._number, self._rest = 0, b""
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        """All that the browser has told of the page by itself, in order."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Have the browser do something, and return its answer."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._writing, json.dumps(message).encode("ascii") + b"\0")
        answer = self._wait_for(lambda told: told.get("id") == message["id"])
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def open(self, path: Path) -> None:
        """Load a file and wait until it is drawn."""
        self.events.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        if not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._wait_for(lambda told: told.get("method") == "Page.loadEventFired")

    def evaluate(self, expression: str) -> Any:
        """Return what an expression of ours is in the page; the page's own policy does not bind the debugger."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def resize(self, width: int, height: int, *, mobile: bool = False) -> None:
        """Draw the page as on a screen of that size."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)

    def prefer(self, scheme: str, media: str = "") -> None:
        """Be told that the person prefers ``light`` or ``dark``, and that the page is for *media*, as in ``print``."""
        self.call("Emulation.setEmulatedMedia", media=media, features=[{"name": "prefers-color-scheme", "value": scheme}])

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """Write a picture of the page."""
        taken = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(taken["data"]))

    def print(self, path: Path) -> None:
        """Write the page as it comes out of a printer."""
        made = self.call("Page.printToPDF", preferCSSPageSize=True, printBackground=False)
        path.write_bytes(base64.b64decode(made["data"]))

    def requests(self) -> list[str]:
        """Return the addresses that the page has asked for, itself included."""
        return [event["params"]["request"]["url"] for event in self.events if event["method"] == "Network.requestWillBeSent"]

    def _wait_for(self, is_it: Any) -> dict[str, Any]:
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            while b"\0" not in self._rest:
                ready, _, _ = select.select([self._reading], [], [], max(deadline - time.monotonic(), 0))
                assert ready, "the browser does not answer"
                data = os.read(self._reading, 1 << 20)
                assert data, "the browser has ended"
                self._rest += data
            line, self._rest = self._rest.split(b"\0", 1)
            told: dict[str, Any] = json.loads(line)
            if "method" in told:
                self.events.append(told)
            if is_it(told):
                return told


@contextmanager
def open_browser(directory: Path) -> Iterator[Page]:
    """Run a browser that keeps everything in *directory*, and give its page while the block runs."""
    assert CHROMIUM is not None
    to_read, our_writing = os.pipe()
    our_reading, to_write = os.pipe()
    # bash puts them where the browser looks for them: a dup2 in the child would need code between fork and exec.
    command = ["bash", "-c", f'exec "$@" 3<&{to_read} 4>&{to_write}', "bash", CHROMIUM, *_QUIET, "--remote-debugging-pipe"]
    browser = subprocess.Popen(
        [*command, f"--user-data-dir={directory}"],
        pass_fds=(to_read, to_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    os.close(to_read)
    os.close(to_write)
    try:
        yield Page(our_writing, our_reading)
    finally:
        os.close(our_writing)
        os.close(our_reading)
        # Its helpers are in the session that it leads; the profile is not to be kept.
        os.killpg(browser.pid, signal.SIGKILL)
        browser.wait()

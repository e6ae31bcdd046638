"""A headless Chromium that a test drives through pipes, with real keys and a real pointer."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

#: The browser's program, None where there is none.
PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")


class Browser:
    """One page of a browser of its own.

    Args:
        page: an HTML file.
        width, height: of the window in pixels.
        touch: a telephone: touch screen, no pointer that hovers.
    """

    def __init__(self, page: Path, width: int, height: int, *, touch: bool = False) -> None:
        assert PROGRAM is not None
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
        profile = page.parent / f"profile-{width}"
        # The protocol of the browser's own tools, on the file descriptors 3 and 4.
        start = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'
        self._process = subprocess.Popen(
            ["bash", "-c", start, PROGRAM, *options, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._number = 0
        self._read = b""
        self._session: dict[str, str] = {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": touch}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        if touch:
            self.call("Emulation.setTouchEmulationEnabled", enabled=True)
        #: Messages of errors in the page's script.
        self.errors: list[str] = []
        self.call("Runtime.enable")
        self.call("Page.navigate", url=page.as_uri())
        self.ask(
            "new Promise((r) => document.readyState === 'complete' ? r() : onload = () => r())"
        )

    def call(self, method: str, **arguments: Any) -> dict[str, Any]:
        """Result of a command of the protocol."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": arguments, **self._session}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("method") == "Runtime.exceptionThrown":
                self.errors.append(str(answer["params"]["exceptionDetails"]))
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                found: dict[str, Any] = answer["result"]
                return found

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._read:
            part = os.read(self._in, 2**16)
            assert part, "the browser has ended"
            self._read += part
        message, _, self._read = self._read.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def ask(self, expression: str) -> Any:
        """Value of a JavaScript expression in the page."""
        asked = {"returnByValue": True, "awaitPromise": True}
        found = self.call("Runtime.evaluate", expression=expression, **asked)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def place(self, chosen: str) -> tuple[float, float]:
        """Middle of the element that an expression names, scrolled into view."""
        self.ask(f"{chosen}.scrollIntoView({{block: 'center'}})")
        # What scrolling sets off comes with a later frame.
        self.ask("new Promise((r) => setTimeout(r, 200))")
        box = f"(({chosen}).getBoundingClientRect())"
        x, y = self.ask(f"[{box}.x + {box}.width / 2, {box}.y + {box}.height / 2]")
        return float(x), float(y)

    def hover(self, chosen: str) -> None:
        """Move the pointer to an element."""
        x, y = self.place(chosen)
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, chosen: str) -> None:
        """Press an element with the pointer, or with a finger."""
        x, y = self.place(chosen)
        for kind in ("mousePressed", "mouseReleased"):
            pressed = {"button": "left", "clickCount": 1}
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **pressed)

    def tap(self, chosen: str) -> None:
        """Touch an element."""
        x, y = self.place(chosen)
        self.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        self.ask("new Promise((r) => setTimeout(r, 400))")

    def key(self, name: str, code: int) -> None:
        """Press a key."""
        for kind in ("keyDown", "keyUp"):
            pressed = {"key": name, "code": name, "windowsVirtualKeyCode": code}
            self.call("Input.dispatchKeyEvent", type=kind, **pressed)

    def write(self, text: str) -> None:
        """Type into the element that has the focus."""
        self.call("Input.insertText", text=text)

    def picture(self, file: Path) -> None:
        """A screenshot of what the window shows."""
        data = self.call("Page.captureScreenshot", format="png")["data"]
        file.write_bytes(base64.b64decode(data))

    def close(self) -> None:
        """End the browser."""
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)

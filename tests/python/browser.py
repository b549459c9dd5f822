"""Chromium without a window, driven through a pipe by its DevTools protocol."""

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time

NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 60


def program():
    """Where Chromium is, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page."""

    def __init__(self, width=1280, height=900):
        self.folder = tempfile.TemporaryDirectory(prefix="ratplus-browser-", ignore_cleanup_errors=True)
        # It reads commands from 3 and writes to 4, each ended by a zero byte.
        theirs_in, self.out = os.pipe()
        self.inside, theirs_out = os.pipe()

        def places():
            # Out of the way of 3 and 4 first.
            pair = [os.dup(os.dup(os.dup(end))) for end in (theirs_in, theirs_out)]
            for end, place in zip(pair, (3, 4)):
                os.dup2(end, place)

        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        flags += ["--disable-background-networking", "--disable-extensions", "--remote-debugging-pipe"]
        flags += [f"--user-data-dir={self.folder.name}", f"--window-size={width},{height}"]
        self.process = subprocess.Popen(
            [program(), *flags, "about:blank"], preexec_fn=places, close_fds=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self.buffer, self.number, self.session, self.events = b"", 0, None, []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.close(self.out)
        os.close(self.inside)
        self.folder.cleanup()

    def message(self):
        """What it says next."""
        until = time.monotonic() + PATIENCE
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.inside], [], [], max(0, until - time.monotonic()))
            more = os.read(self.inside, 1 << 20) if ready else b""
            if not more:
                raise OSError("Chromium says nothing" if not ready else f"Chromium ended: {self.process.wait()}")
            self.buffer += more
        one, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(one)

    def call(self, method, **params):
        """The result of a command."""
        self.number += 1
        command = {"id": self.number, "method": method, "params": params}
        if self.session:
            command["sessionId"] = self.session
        os.write(self.out, json.dumps(command).encode() + b"\0")
        while True:
            found = self.message()
            if found.get("id") != self.number:
                self.events.append(found)
            elif "error" in found:
                raise OSError(f"{method}: {found['error']}")
            else:
                return found["result"]

    def open(self, url):
        """Goes to a page, and keeps what it complains about from then on."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Runtime", "Log", "Network", "Page"):
            self.call(f"{domain}.enable")
        self.call("Page.navigate", url=url)

    def value(self, expression):
        """What JavaScript makes of an expression."""
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise OSError(f"{expression}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def wait(self, expression):
        """Its value as soon as it is true."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            value = self.value(expression)
            if value:
                return value
            time.sleep(0.05)
        raise OSError(f"never: {expression}; the page: {self.value('document.body.innerText')}")

    def type(self, selector, text):
        """Types into an element in place of what it holds."""
        self.value(f"document.querySelector({selector!r}).focus(); document.querySelector({selector!r}).select()")
        self.call("Input.insertText", text=text)

    def click(self, selector):
        """Presses and lets go the mouse over an element."""
        box = f"(() => {{ const box = document.querySelector({selector!r}).getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2] }})()"
        x, y = self.value(box)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def screenshot(self, path):
        """The page as a PNG file."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def complaints(self):
        """Errors of the page, and what it asked for elsewhere."""
        found = []
        for event in self.events:
            params = event.get("params", {})
            match event.get("method"):
                case "Runtime.exceptionThrown":
                    found.append(params["exceptionDetails"])
                case "Log.entryAdded" if params["entry"]["level"] == "error":
                    found.append(params["entry"])
                case "Runtime.consoleAPICalled" if params["type"] == "error":
                    found.append(params)
        return found

    def requested(self):
        """Addresses that the page asked for."""
        sent = [event for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in sent]

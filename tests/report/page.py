#!/usr/bin/env python3
"""Open a page in headless Chromium and say as JSON what came of it, a line for each width and colour scheme.

use: python page.py CHROMIUM PAGE.html EXPRESSION [FOLDER_FOR_PICTURES]

EXPRESSION is JavaScript; its value (JSON) is told as "found". The browser is driven by its DevTools protocol over a pipe:
file descriptors 3 and 4, messages of JSON ended by a zero byte. Nothing but Python's own library is needed.
"""
import base64
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PATIENCE = 60
CASES = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]


class Browser:
    def __init__(self, program, profile):
        ours_read, theirs_write = os.pipe()
        theirs_read, ours_write = os.pipe()

        def place():
            # Through numbers that are neither 3 nor 4, so that neither is overwritten before it is copied.
            read, write = os.dup(theirs_read), os.dup(theirs_write)
            a, b = os.dup(read), os.dup(write)
            os.dup2(a, 3)
            os.dup2(b, 4)

        command = [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                   "--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe",
                   f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(command, preexec_fn=place, close_fds=False, stdin=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(theirs_read)
        os.close(theirs_write)
        self.read, self.write, self.rest, self.number, self.events = ours_read, ours_write, b"", 0, []

    def message(self, until):
        while b"\0" not in self.rest:
            if not select.select([self.read], [], [], max(0, until - time.monotonic()))[0]:
                raise TimeoutError(f"no word from the browser in {PATIENCE} s")
            part = os.read(self.read, 1 << 20)
            if not part:
                raise EOFError("the browser ended")
            self.rest += part
        line, self.rest = self.rest.split(b"\0", 1)
        return json.loads(line)

    def call(self, method, session=None, **parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + PATIENCE
        while True:
            answer = self.message(until)
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def wait_for(self, method):
        until = time.monotonic() + PATIENCE
        while not any(event.get("method") == method for event in self.events):
            self.events.append(self.message(until))


def look(browser, page, expression, width, scheme, pictures):
    target = browser.call("Target.createTarget", url="about:blank")["targetId"]
    session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    call = lambda method, **parameters: browser.call(method, session, **parameters)
    for domain in ("Page", "Runtime", "Network", "Log"):
        call(f"{domain}.enable")
    call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
    call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.events.clear()
    url = page.resolve().as_uri()
    call("Page.navigate", url=url)
    browser.wait_for("Page.loadEventFired")

    def value(source):
        answer = call("Runtime.evaluate", expression=source, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"]))
        return answer["result"].get("value")

    drawn = value("new Promise(done => requestAnimationFrame(() => setTimeout(() => done(performance.now()), 0)))")
    load = value("performance.getEntriesByType('navigation')[0].loadEventEnd")
    paint = value("performance.getEntriesByType('paint').find(e => e.name == 'first-contentful-paint')?.startTime ?? null")
    # Everything folded is opened, since it must not be wider than the page either.
    folded = value("[document.scrollingElement.scrollWidth, innerWidth]")
    if pictures:
        name = f"{page.stem}-{width}-{scheme}"
        picture = call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        Path(pictures, f"{name}.png").write_bytes(base64.b64decode(picture["data"]))
        box = value("[document.scrollingElement.scrollWidth, document.scrollingElement.scrollHeight]")
        whole = {"x": 0, "y": 0, "width": box[0], "height": min(box[1], 9000), "scale": 1}
        picture = call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=whole)
        Path(pictures, f"{name}-whole.png").write_bytes(base64.b64decode(picture["data"]))
    # The pointer goes over every drawing, and the keys too.
    value("""document.querySelectorAll('svg[data-plot]').forEach(svg => {
        const box = svg.getBoundingClientRect();
        for (const share of [0, 0.4, 1]) svg.dispatchEvent(new PointerEvent('pointermove',
            {clientX: box.left + share * box.width, clientY: box.top + box.height / 2}));
        svg.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowLeft'}));
    }); document.querySelectorAll('details').forEach(d => d.open = true);""")
    opened = value("[document.scrollingElement.scrollWidth, innerWidth]")
    if pictures:
        value("document.querySelector('#episodes')?.scrollIntoView()")
        picture = call("Page.captureScreenshot", format="png")
        Path(pictures, f"{name}-episodes.png").write_bytes(base64.b64decode(picture["data"]))
    found = value(f"JSON.stringify({expression})")
    errors, requests = [], []
    for event in browser.events:
        if event.get("sessionId") != session:
            continue
        said = event.get("params", {})
        if event["method"] == "Log.entryAdded":
            errors.append(said["entry"]["text"])
        elif event["method"] in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
            errors.append(json.dumps(said)[:400])
        elif event["method"] == "Network.requestWillBeSent" and said["request"]["url"] != url:
            requests.append(said["request"]["url"])
    browser.call("Target.closeTarget", targetId=target)
    return {"width": width, "scheme": scheme, "folded": folded, "opened": opened, "errors": errors, "requests": requests,
            "load_ms": load, "paint_ms": paint, "drawn_ms": drawn, "found": json.loads(found)}


def main():
    program, page, expression = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    pictures = sys.argv[4] if len(sys.argv) > 4 else None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(program, profile)
        try:
            for width, scheme in CASES:
                print(json.dumps(look(browser, page, expression, width, scheme, pictures)), flush=True)
            browser.call("Browser.close")
        finally:
            try:
                browser.process.wait(10)
            except subprocess.TimeoutExpired:
                browser.process.kill()
                browser.process.wait()


if __name__ == "__main__":
    main()

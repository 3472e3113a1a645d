"""The search page in a real browser: driven over the DevTools protocol's pipe, without further dependencies."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from index.encoder import Encoder
from index.items import Item
from index.manifest import EncoderIdentity
from index.memory_bank import MemoryBank

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = '<img src=x onerror="document.title=1">'

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]


class Browser:
    """One headless tab. Commands go in by file descriptor 3 and answers come out by 4, NUL between them."""

    def __init__(self, profile: Path) -> None:
        commands, self._in = os.pipe()
        out, answers = os.pipe()
        self._out = os.fdopen(out, "rb")
        move = f"import os, sys; os.dup2({commands}, 3); os.dup2({answers}, 4); os.execv(sys.argv[1], sys.argv[1:])"
        self._popen = subprocess.Popen(
            [sys.executable, "-c", move, str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu",
             "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
             "--disable-sync", "--remote-debugging-pipe", "--window-size=1280,1000",
             f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(commands, answers), stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(commands)
        os.close(answers)
        self._count = 0
        self._session: str | None = None
        self._loaded = False
        self.problems: list[str] = []  # exceptions and console errors of the page
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Runtime", "Log", "Page", "DOM"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        self._count += 1
        command = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            command["sessionId"] = self._session
        os.write(self._in, json.dumps(command).encode() + b"\0")
        while (message := self._read()).get("id") != self._count:
            pass
        assert "error" not in message, message
        return message["result"]

    def goto(self, url: str) -> None:
        self._loaded = False
        self.call("Page.navigate", url=url)
        while not self._loaded:
            self._read()

    def _read(self) -> dict[str, Any]:
        message = bytearray()
        while (byte := self._out.read(1)) != b"\0":
            assert byte, "the browser went away"
            message += byte
        read = json.loads(message)
        self._loaded |= read.get("method") == "Page.loadEventFired"
        if read.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
            self.problems.append(json.dumps(read["params"]))
        return read

    def run(self, script: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, condition: str) -> None:
        script = (
            "new Promise((yes, no) => { const end = performance.now() + 15000; (function look() {"
            f"if ({condition}) yes(true); else if (performance.now() > end) no(document.body.innerText);"
            "else setTimeout(look, 10); })(); })"
        )
        self.run(script)

    def close(self) -> None:
        os.close(self._in)
        self._popen.kill()
        self._popen.wait()
        self._out.close()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    opened = Browser(tmp_path / "profile")
    yield opened
    opened.close()


IDLE = "document.querySelector('#results').ariaBusy === 'false'"
SHOWN = f"{IDLE} && !document.querySelector('#neighbours').hidden"


def visible(browser: Browser, selector: str) -> str:
    return browser.run(f"document.querySelector({selector!r}).innerText")


def test_the_page_answers_by_item_by_file_and_by_click(
    browser: Browser,
    run_service: Callable[..., Any],
    shapes_folder: Path,
    shape_png: Callable[[str, int], bytes],
    tmp_path: Path,
):
    url = run_service("--images", shapes_folder).url
    browser.goto(url)
    browser.until("document.querySelectorAll('#sample-list li').length > 0")
    assert re.search(r"32 pictures, 4 kinds · encoder tiny-0", visible(browser, "header"))
    browser.until("[...document.querySelectorAll('#sample-list img')].every(i => i.complete && i.naturalWidth)")

    browser.run("document.querySelector('#sample-list button').click()")
    browser.until(SHOWN)
    asked = browser.run("new URLSearchParams(location.hash.slice(1)).get('id')")
    ids = browser.run("[...document.querySelectorAll('#grid button')].map(b => b.dataset.id)")
    assert len(ids) == 24
    assert asked not in ids
    assert visible(browser, "#query-name") == asked
    assert "% of the vote" in visible(browser, "#verdict")
    assert browser.run("document.querySelectorAll('#vote-list li').length") == 10
    browser.run("document.querySelector('#more').click()")
    browser.until(f"{SHOWN} && document.querySelectorAll('#grid li').length === 31")

    picture = tmp_path / "<b>mine<b>.png"
    picture.write_bytes(shape_png("triangle", 3))
    document = browser.call("DOM.getDocument")["root"]["nodeId"]
    node = browser.call("DOM.querySelector", nodeId=document, selector="#file")["nodeId"]
    browser.call("DOM.setFileInputFiles", nodeId=node, files=[str(picture)])
    browser.until(
        f"{SHOWN} && !location.hash && document.querySelector('#grid button').dataset.id === 'triangle/3.png'"
    )
    assert visible(browser, "#query-name") == "<b>mine<b>.png"

    picture.write_bytes(b"<svg/>")
    browser.call("DOM.setFileInputFiles", nodeId=node, files=[str(picture)])
    browser.until("!document.querySelector('#problem').hidden")
    assert visible(browser, "#problem").startswith("Expected a JPEG, PNG")
    assert browser.run("document.querySelector('#answer').hidden && document.querySelector('#neighbours').hidden")

    browser.run("location.hash = 'id=stripes/1.png'")
    browser.until(f"{SHOWN} && document.querySelector('#query-name').innerText === 'stripes/1.png'")
    browser.run("document.querySelector('#again').click()")
    browser.until("!document.querySelector('#samples').hidden && document.querySelector('#neighbours').hidden")
    unexpected = [problem for problem in browser.problems if "415" not in problem]
    assert not unexpected


def test_every_control_has_a_name_and_every_picture_an_alternative(
    browser: Browser, run_service: Callable[..., Any], shapes_folder: Path
):
    url = run_service("--images", shapes_folder).url
    browser.goto(f"{url}/#id=circle/0.png")
    browser.until(SHOWN)
    assert browser.run("[...document.images].every(image => image.hasAttribute('alt'))")
    controls = "[...document.querySelectorAll('button, input, a')]"
    named = "c.ariaLabel || c.innerText || c.labels?.length"
    assert browser.run(f"{controls}.filter(c => !({named})).map(c => c.outerHTML)") == []
    ids = browser.run("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    browser.goto(f"{url}/docs")
    browser.until("document.querySelectorAll('article').length > 10")
    assert "/classify" in visible(browser, "main")
    assert not browser.problems


def test_hostile_names_stay_text_and_a_bank_without_labels_or_pictures_works(
    browser: Browser,
    run_service: Callable[..., Any],
    tmp_path: Path,
    tiny_encoder: Encoder,
    shape_png: Callable[[str, int], bytes],
):
    for labelled in (True, False):
        path = tmp_path / f"bank-{labelled}"
        with MemoryBank.create(path, encoder=EncoderIdentity.of(tiny_encoder)) as bank:
            items = [Item(id=f"{HOSTILE}/{n}&?#%", label=HOSTILE if labelled else None, uri="x") for n in range(3)]
            bank.add(items, tiny_encoder.embed_pictures([shape_png("circle", n) for n in range(3)]))
        url = run_service("--bank", path).url
        browser.goto(url)
        browser.until("document.querySelectorAll('#sample-list li').length === 3")
        browser.run("document.querySelector('#sample-list button').click()")
        browser.until(SHOWN)
        assert browser.run("document.querySelectorAll('#grid li').length") == 2
        assert browser.run("document.querySelector('#answer').hidden") is not labelled
        if labelled:
            assert HOSTILE in visible(browser, "#verdict")
        assert "Lookalike" in browser.run("document.title")


def test_a_key_is_asked_for_and_used_for_pictures_too(
    browser: Browser,
    run_service: Callable[..., Any],
    shapes_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("LOOKALIKE_READ_KEY", "open-sesame")
    browser.goto(run_service("--images", shapes_folder).url)
    browser.until("!document.querySelector('#key-form').hidden")
    browser.run("document.querySelector('#key').value = 'open-sesame'")
    browser.run("document.querySelector('#key-form').requestSubmit()")
    browser.until("document.querySelectorAll('#sample-list img').length > 0")
    browser.until(
        "[...document.querySelectorAll('#sample-list img')].some(i => i.src.startsWith('blob:') && i.naturalWidth)"
    )
    assert browser.run("document.querySelector('#key-form').hidden") is True


def test_a_screenshot_has_colours(
    browser: Browser, run_service: Callable[..., Any], shapes_folder: Path, tmp_path: Path
):
    import base64

    browser.goto(f"{run_service('--images', shapes_folder).url}/#id=circle/0.png")
    browser.until(f"{SHOWN} && [...document.images].every(image => image.complete)")
    shot = tmp_path / "page.png"
    shot.write_bytes(base64.b64decode(browser.call("Page.captureScreenshot")["data"]))
    with Image.open(shot) as image:
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 50

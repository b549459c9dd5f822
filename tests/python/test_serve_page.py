"""The page of `ratplus serve` in Chromium: a prompt is typed, tokens stream, slots and figures move."""

import http.client
import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from browser import Browser, program
from conftest import ROOT, serving

CASE = ROOT / "tests" / "golden" / "kjv_d16w64i4"


@pytest.fixture(scope="module")
def address(ratplus_bin, tmp_path_factory):
    """Of a server of a small trained model."""
    package = tmp_path_factory.mktemp("served") / "kjv"
    export = [ratplus_bin, "export", CASE / "model.pth", "--config", CASE / "config.json", "-o", package, "--batch", 4]
    export += ["--tokenizer", CASE / "tokenizer.json", "--max-seq-len", 1024, "--prefill-lengths", "16,64"]
    done = subprocess.run([str(word) for word in export], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with serving(ratplus_bin, package) as server:
        yield server.address


# Clicks `Stop` once the answer has a few tokens.
STOP_SOON = """
    new MutationObserver((_, observer) => {
        const tokens = document.querySelectorAll('#answer span').length
        if (!document.querySelector('#cancel').disabled && tokens > 5 && tokens < 200) {
            observer.disconnect()
            document.querySelector('#cancel').click()
        }
    }).observe(document.querySelector('#answer'), { childList: true, subtree: true })
"""


@pytest.mark.skipif(program() is None, reason="Chromium is not installed (Debian: apt install chromium)")
@pytest.mark.parametrize("size", [(1280, 900), (420, 900)], ids=["wide", "narrow"])
def test_a_prompt_is_continued_on_the_page(address, tmp_path, size):
    with Browser(*size) as browser:
        browser.call("Browser.getVersion")
        browser.open(f"{address}/")
        browser.wait("document.querySelector('#state')?.textContent === 'ready'")
        assert browser.value("document.querySelectorAll('#slots li').length") == 4
        browser.type("#prompt", "And God said")
        browser.type("#max_tokens", "300")
        browser.type("#seed", "7")
        browser.click("#run")
        # While it runs, tokens come.
        browser.wait("document.querySelectorAll('#answer span').length > 20")
        browser.wait("!document.querySelector('#run').disabled")
        answer = browser.value("document.querySelector('#answer').textContent")
        assert answer.startswith("And God said") and len(answer) > 500, answer
        note = browser.value("document.querySelector('#note').textContent")
        assert re.match(r"\d+ prompt tokens, 0 from the prefix cache; 300 new tokens in [\d.]+ s", note), note
        # Once more: the same seed, the same text; then stopped on the way.
        browser.click("#run")
        browser.wait("!document.querySelector('#run').disabled")
        assert browser.value("document.querySelector('#answer').textContent") == answer
        browser.type("#max_tokens", "1000")
        # By the page itself: a thousand tokens may take less than a look at it from here.
        browser.value(STOP_SOON)
        browser.click("#run")
        browser.wait("/^stopped after \\d+ tokens$/.test(document.querySelector('#note').textContent)")
        if folder := os.environ.get("RATPLUS_SCREENSHOTS"):
            browser.screenshot(Path(folder) / f"serve-{size[0]}.png")
        browser.wait("[...document.querySelectorAll('#slots li')].every(slot => slot.className === 'free')")
        # Nothing beside the text is wider than the window.
        assert browser.value("document.documentElement.scrollWidth <= window.innerWidth")
        # An error is told.
        browser.type("#temperature", "0")
        browser.type("#stop", "x" * 5000)
        browser.click("#run")
        browser.wait("document.querySelector('#note').classList.contains('bad')")
        assert "`stop`" in browser.value("document.querySelector('#note').textContent")
        # That refusal is all that it complains of, and nothing came from elsewhere.
        assert len(browser.complaints()) <= 1, browser.complaints()
        assert all(url.startswith((address, "data:")) for url in browser.requested()), browser.requested()


@pytest.mark.skipif(program() is None, reason="Chromium is not installed (Debian: apt install chromium)")
def test_slots_in_use_are_shown(address):
    # Far longer than the page takes to look; it ends with its connection.
    asked = {"prompt": "And God said", "max_tokens": 1000, "ignore_eos": True, "n": 100}
    server = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
    with Browser(1280, 900) as browser:
        browser.open(f"{address}/")
        browser.wait("document.querySelector('#state')?.textContent === 'ready'")
        server.request("POST", "/v1/completions", json.dumps(asked))
        browser.wait("document.querySelectorAll('#slots li.decode').length === 4")
        server.close()
        browser.wait("document.querySelectorAll('#slots li.free').length === 4")

#!/usr/bin/env python3
"""Pictures of the dashboard for the documentation: docs/dashboard-light.png and docs/dashboard-dark.png.

    tools/setup.sh test && apt-get install fonts-inter fonts-jetbrains-mono pngquant
    .venv/bin/python tools/screenshots.py [-o FOLDER] [--width 1280]

Starts the program (PIKV_BIN, build/release/pikv if unset) with the default model, gives it a few requests of different
methods, runs the playground, and takes the page while requests run.
"""

import argparse
import contextlib
import os
import pathlib
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
os.environ.setdefault("PIKV_BIN", str(ROOT / "build/release/pikv"))
sys.path.insert(0, str(ROOT / "tests/http"))

import requests  # noqa: E402
from playwright.sync_api import sync_playwright  # noqa: E402

from server import Server  # noqa: E402

FLAGS = ("--kv-request-methods", "--kv-page-tokens", "16", "--kv-window", "64", "--kv-shards", "2",
         "--kv-cache-memory-bytes", "24Mi", "--served-model-name", "storyteller")
METHODS = ({"compression": "pikv"}, {}, {"scheduling": "snapkv", "budget": 0.5, "compression": "int4"},
           {"compression": "pikv", "routing": "topk"})
BYTES_MAX = 200_000
STORY = "The king had a daughter who was more beautiful than words can tell. " * 20


def keep_busy(server, is_over):
    """Requests of all methods, one after another, until told to stop."""
    for i in range(10 ** 6):
        if is_over.is_set():
            return
        kv = METHODS[i % len(METHODS)]
        requests.post(server.url + "/v1/completions", timeout=60, json={
            "prompt": STORY[: 600 + 97 * (i % 7)], "max_tokens": 700, "temperature": 0.9, "seed": i,
            "ignore_eos": True, "kv": kv})


@contextlib.contextmanager
def load(server, n_clients=3):
    is_over = threading.Event()
    clients = [threading.Thread(target=keep_busy, args=(server, is_over)) for _ in range(n_clients)]
    for client in clients:
        client.start()
    try:
        yield
    finally:
        is_over.set()
        for client in clients:
            client.join()


def wait_for(is_true, seconds=30):
    """Polls; the page's policy forbids the evaluated strings of wait_for_function."""
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end, "the page does not come to show what the picture is of"
        time.sleep(0.05)


def compress(path):
    """Flat colours need no more than a palette."""
    subprocess.run(["pngquant", "--force", "--speed", "1", "--output", str(path), "96", str(path)], check=True)
    assert path.stat().st_size < BYTES_MAX, path.stat().st_size


def take(browser, server, theme, args):
    page = browser.new_page(viewport={"width": args.width, "height": 900}, color_scheme=theme)
    page.goto(server.url + "/")
    page.wait_for_selector("#state[data-state=ready]")
    page.wait_for_selector(".settings select")
    with load(server):
        time.sleep(args.seconds)
        page.fill("#max-tokens", "72")
        page.select_option("#codec-B", "int4")
        page.click("#run")
        wait_for(lambda: "Column B" in page.inner_text("#play-state"))
        wait_for(lambda: "pikv" in page.inner_text("#strip-title") and
                 page.locator(".strips:not(.past) .codec-int2").count() > 8)
        page.evaluate("() => document.activeElement.blur()")
        path = pathlib.Path(args.output) / f"dashboard-{theme}.png"
        page.screenshot(path=path, full_page=True)
    page.close()
    compress(path)
    print(f"{path}: {path.stat().st_size} bytes")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", default=str(ROOT / "docs"))
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--seconds", type=float, default=60, help="of load before the picture")
    args = parser.parse_args()
    with Server(*FLAGS) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        for theme in ("light", "dark"):
            take(browser, server, theme, args)
        browser.close()


if __name__ == "__main__":
    main()

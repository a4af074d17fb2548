"""The page at / in a real browser: Debian's Chromium without a window, driven by Playwright.

Every visit ends with two checks that no test can forget: the page asked nobody but its server for anything, and
the browser's console says nothing but what the test expects.
"""

import contextlib
import itertools
import os
import re

import pytest
from playwright.sync_api import expect, sync_playwright

from server import Server, limit, wait_until
from wire import Connection, completion_bytes

CHROMIUM = os.environ.get("PIKV_CHROMIUM", "/usr/bin/chromium")
LONG = "The king had a daughter who was more beautiful than words can tell. " * 8
N_LISTS = 8  # layers and heads of models/storyteller

# Elements whose text has too little contrast with what lies behind it, by WCAG 2.
FAINT = """selectors => {
  const paint = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const luminance = colors => {
    for (const color of colors) { paint.fillStyle = color; paint.fillRect(0, 0, 1, 1); }
    const [r, g, b] = [...paint.getImageData(0, 0, 1, 1).data].map(c => c / 255)
      .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = element => {
    const behind = [];
    for (let e = element; e; e = e.parentElement) behind.unshift(getComputedStyle(e).backgroundColor);
    const [a, b] = [luminance(behind), luminance([...behind, getComputedStyle(element).color])].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  };
  return selectors.flatMap(selector => [...document.querySelectorAll(selector)].filter(e => e.checkVisibility())
    .map(e => [selector, e.textContent, contrast(e)]).filter(([, , ratio]) => !(ratio >= 4.5)));
}"""
TEXTS = [".note", ".more", "h3", "#state", "#heat td", "#experts td", "th", ".facts dt", ".request", "#run", "a:not(.skip)",
         ".switch span", "label"]

expect.set_options(timeout=limit(15) * 1000)


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def choosing():
    with Server("--kv-request-methods", "--kv-page-tokens", 16, "--kv-window", 16) as started:
        yield started


@contextlib.contextmanager
def visit(browser, server, says="", **context):
    """A fresh page of the server; `says` matches what the console may say."""
    opened = browser.new_context(**context)
    opened.set_default_timeout(limit(15) * 1000)
    strangers, complaints = [], []

    def refuse(route):
        strangers.append(route.request.url)
        route.abort()

    opened.route(re.compile(f"^(?!{re.escape(server.url)}/)"), refuse)
    page = opened.new_page()
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda fault: complaints.append(str(fault)))
    try:
        page.goto(server.url + "/")
        yield page
        assert strangers == []
        assert [c for c in complaints if not (says and re.search(says, c))] == []
    finally:
        opened.close()


def wait_ready(page):
    expect(page.locator("#state")).to_have_text("Ready")
    expect(page.locator("#model")).to_contain_text("storyteller")


def run_prompt(page, n_tokens=48):
    page.fill("#max-tokens", str(n_tokens))
    page.click("#run")
    expect(page.locator("#play-state")).to_have_text(re.compile("^Column A"))


def fact(page, column, name):
    """What a column says about its run."""
    terms = page.locator(f"#column-{column} .facts div").filter(
        has=page.get_by_text(name, exact=True))
    return terms.locator("dd").inner_text()


def number(text):
    """The one that a text begins with; of bytes if there is a unit."""
    value, unit = re.match(r"([\d.]+) ?(\w*)", text).groups()
    return float(value) * {"KiB": 2 ** 10, "MiB": 2 ** 20}.get(unit, 1)


# ---- what it shows ----


def test_an_idle_server(browser, choosing):
    with visit(browser, choosing) as page:
        wait_ready(page)
        assert page.title() == "storyteller · pikv"
        expect(page.locator("#tile-output .value")).to_have_text("0")
        expect(page.locator("#tile-queue .more")).to_have_text("0 waiting, 0 preempted")
        expect(page.locator("#heat td")).to_have_count(N_LISTS)
        expect(page.locator("#experts td:not(.ratio)")).to_have_count(4 * 8)
        expect(page.locator("#strips")).to_contain_text("No sequence is open")
        expect(page.locator("#pool")).to_contain_text("pages of 16 tokens")
        assert page.locator("#notice").inner_text() == ""


def test_the_map_follows_the_load(browser, choosing):
    with visit(browser, choosing) as page, Connection(choosing.port) as client:
        wait_ready(page)
        client.send(completion_bytes(LONG, max_tokens=1700, ignore_eos=True, stream=True, n=12,
                                     kv={"compression": "int8"}))  # many, so that they take their time
        assert client.read_until(b"data: ")
        expect(page.locator("#strips .strip")).to_have_count(N_LISTS)
        expect(page.locator("#strip-title")).to_contain_text("int8")
        expect(page.locator("#legend")).to_contain_text("int8")
        first = page.locator("#strips .block").count()
        entries = int(page.locator("#heat td").first.inner_text())
        assert first > 0 and entries > 0
        wait_until(lambda: page.locator("#strips .block").count() > first, 15, "more pages")
        wait_until(lambda: int(page.locator("#heat td").first.inner_text()) > entries, 15, "more entries")
        expect(page.locator("#tile-output .value")).not_to_have_text(re.compile("^(0|–)$"))
        expect(page.locator("#tile-between .more")).to_contain_text("95 % within")
        page.locator("#map-table summary").click()
        expect(page.locator("#map-table tbody tr")).to_have_count(N_LISTS)
        assert "int8" in page.locator("#map-table tbody tr").first.inner_text()
        page.select_option("#layer", "2")
        expect(page.locator("#strips .strip")).to_have_count(2)
        client.close()
        expect(page.locator("#strip-title")).to_contain_text("has ended")


# ---- the playground ----


def test_two_settings_side_by_side(browser, choosing):
    with visit(browser, choosing) as page:
        wait_ready(page)
        page.select_option("#codec-A", "none")
        page.select_option("#codec-B", "int4")
        page.select_option("#selection-B", "snapkv")
        assert '"compression": "snapkv,int4", "budget": 0.5}' in page.locator("#column-B code").inner_text()
        run_prompt(page)
        for column in "AB":
            expect(page.locator(f"#column-{column}")).to_have_attribute("data-state", "done")
            assert len(page.locator(f"#column-{column} .text").inner_text()) > 40
            assert number(fact(page, column, "Speed")) > 0 and number(fact(page, column, "Tokens")) == 48
        held = [number(fact(page, column, "Held")) for column in "AB"]
        assert held[1] < held[0] / 2
        assert "times less" in fact(page, "B", "Held") and "nothing saved" in fact(page, "A", "Held")
        assert "A for" in fact(page, "B", "Text")
        assert page.locator("#column-B mark").inner_text() in page.locator("#column-B .text").inner_text()
        expect(page.locator("#play-state")).to_have_text("Column A is done. Column B is done.")


def test_more_columns_at_the_same_time_with_one_text(browser, choosing):
    with visit(browser, choosing) as page:
        wait_ready(page)
        page.click("#add")
        page.select_option("#codec-B", "none")
        page.select_option("#codec-C", "none")
        page.select_option("#scheduling-C", "none")
        page.select_option("#routing-C", "certified")
        page.fill("#routingNumber-C", "0")
        page.check("#together")
        run_prompt(page)
        texts = {page.locator(f"#column-{column} .text").inner_text() for column in "ABC"}
        assert len(texts) == 1, "exact methods have one text"
        assert fact(page, "C", "Text") == "the same as A"


def test_a_run_is_stopped(browser, choosing):
    with visit(browser, choosing) as page:
        wait_ready(page)
        page.fill("#max-tokens", "1500")
        page.click("#run")
        expect(page.locator("#column-A .text")).not_to_be_empty()
        page.click("#stop")
        expect(page.locator("#column-A .notice, #column-B .notice").first).to_have_text("Stopped.")
        expect(page.locator("#run")).to_be_enabled()
    choosing.wait_idle()


def test_a_refusal_is_shown_in_words(browser, choosing):
    with visit(browser, choosing, says="400") as page:
        wait_ready(page)
        page.fill("#prompt", "word " * 5000)
        run_prompt(page)
        expect(page.locator("#column-A .notice")).to_contain_text("context")
        expect(page.locator("#play-state")).to_contain_text("context")


def test_without_request_methods_one_column_runs(browser, server):
    with visit(browser, server) as page:
        wait_ready(page)
        expect(page.locator("#play-note")).to_contain_text("--kv-request-methods")
        expect(page.locator("#codec-B")).to_be_disabled()
        run_prompt(page)
        assert number(fact(page, "A", "Held")) > 0
        assert page.locator("#column-B .text").inner_text() == ""


# ---- who uses it, and how ----


def background(page):
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


def test_light_and_dark(browser, choosing):
    shades = {}
    for scheme in ("light", "dark"):
        with visit(browser, choosing, color_scheme=scheme) as page:
            wait_ready(page)
            expect(page.locator("#heat td")).to_have_count(N_LISTS)
            shades[scheme] = background(page)
            assert page.evaluate(FAINT, TEXTS) == []
            if scheme == "light":
                continue
            page.locator("input[name=theme][value=light]").check(force=True)
            assert background(page) == shades["light"]
            page.reload()
            wait_ready(page)
            assert background(page) == shades["light"]
            page.locator("input[name=theme][value=auto]").check(force=True)
            assert background(page) == shades["dark"]
    assert shades["light"] != shades["dark"]


FOCUS = """() => {
  const at = document.activeElement;
  const shown = at.matches(".switch input") ? at.nextElementSibling : at;
  const style = getComputedStyle(shown);
  const box = shown.getBoundingClientRect();
  return { id: at.id || at.name || at.className || at.tagName, line: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2,
           seen: box.width > 0 && box.right > 0 && box.left < innerWidth };
}"""


def test_the_keyboard_reaches_everything(browser, choosing):
    with visit(browser, choosing) as page:
        wait_ready(page)
        expect(page.locator("#codec-B")).to_be_visible()
        page.keyboard.press("Tab")
        assert page.evaluate(FOCUS)["id"] == "skip"
        page.keyboard.press("Enter")
        assert page.evaluate(FOCUS)["id"] == "main"
        page.reload()
        wait_ready(page)
        expect(page.locator("#codec-B")).to_be_visible()
        order = []
        while not order or order[-1] != "add":
            page.keyboard.press("Tab")
            focus = page.evaluate(FOCUS)
            assert focus["seen"] and focus["line"], focus
            order.append(focus["id"])
            assert len(order) < 60, order
        wanted = ["skip", "pause", "key-button", "theme", "seq", "layer", "heat", "strips", "span", "experts", "prompt",
                  "max-tokens", "temperature", "seed", "together", "add"]
        assert [name for name in order if name in wanted] == wanted
        page.keyboard.press("Tab")  # Stop is disabled
        assert page.evaluate(FOCUS)["id"] == "run"
        page.keyboard.press("Enter")
        expect(page.locator("#column-B")).to_have_attribute("data-state", "done")
        for name in ("codec-A", "selection-A", "scheduling-A", "routing-A", "text", "codec-B"):
            page.keyboard.press("Tab")
            assert page.evaluate(FOCUS)["id"] == name


def test_a_narrow_screen(browser, choosing):
    with visit(browser, choosing, viewport={"width": 320, "height": 640}) as page:
        wait_ready(page)
        run_prompt(page)
        expect(page.locator("#experts td")).not_to_have_count(0)
        page.click("#key-button")
        assert page.evaluate("document.scrollingElement.scrollWidth") <= 320
        wide = page.evaluate("""[...document.querySelectorAll("body *")].filter(e => !e.closest(".scroll, .hidden, .skip, svg") &&
            e.getBoundingClientRect().right > 320.5 && e.getBoundingClientRect().width > 1).map(e => e.id || e.className)""")
        assert wide == []


def large_map():
    """Of a model with 32 layers of 8 heads over 2 shards, with pages on all tiers."""
    methods = {"routing": "full", "scheduling": "snapkv", "budget": 0.5, "compression": "int4", "rewrite": "none"}
    heads, pages = [], []
    for layer, head, shard in itertools.product(range(32), range(8), range(2)):
        place = {"layer": layer, "head": head, "shard": shard, "slots_live": 100 * layer + head}
        runs = [{"block": 20 * i + shard, "blocks": 19, "codec": codec, "slots_live": 16, "tier": tier, "cached": i == 0}
                for i, (codec, tier) in enumerate((("int8", "device"), ("svd", "host"), ("int2", "disk")))]
        heads.append(place)
        pages.append({**place, "pages": 57, "runs": runs})
    return {"settings": {"type": "bf16", "placement": "block", "layers": 32, "page_tokens": 32, "window_tokens": 128,
                         "sink_tokens": 4, "shards": 2, "prefix_caching": True, "request_methods": True,
                         "methods": methods},
            "counters": {"pages": {"total": 90000, "used": 60000, "cached": 20000, "free": 10000}, "bytes": {},
                         "slots_live": 3, "prefix_objects": 1},
            "sequences": [{"id": 7, "length": 4000, "blocks_in_pages": 60, "slots_live": 9, "methods": methods}],
            "heads": heads, "sequence": {"id": 7, "is_truncated": True, "heads": pages}}


@pytest.mark.parametrize("width", [320, 1280])
def test_a_large_map_fits(browser, choosing, width):
    with visit(browser, choosing, viewport={"width": width, "height": 700}) as page:
        page.context.route(re.compile(r"/debug/kv(\?.*)?$"), lambda route: route.fulfill(json=large_map()))
        expect(page.locator("#strips .strip")).to_have_count(512)
        expect(page.locator("#heat td")).to_have_count(512)
        expect(page.locator("#strip-title")).to_contain_text("choose a layer")
        assert page.evaluate("document.scrollingElement.scrollWidth") <= width
        for kind in ("codec-svd.tier-host", "codec-int2.tier-disk"):
            assert page.locator(f"#strips .{kind}").count() == 512  # 512 x 57 pages: a run is one bar
        for text in ("svd", "on disk", "in host memory", "shared with a cached prefix"):
            expect(page.locator("#legend")).to_contain_text(text)


def test_the_key_stays_in_the_tab(browser, locked):
    with visit(browser, locked, says="401") as page:
        expect(page.locator("#notice")).to_contain_text("wants an API key")
        expect(page.locator("#tile-queue .value")).to_have_text("0")  # /metrics is public
        page.fill("#key", "wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#notice")).to_contain_text("does not accept")
        page.fill("#key", "file-key")
        page.keyboard.press("Enter")
        expect(page.locator("#heat td")).to_have_count(N_LISTS)
        expect(page.locator("#notice")).to_be_empty()
        run_prompt(page)
        assert len(page.locator("#column-A .text").inner_text()) > 40
        assert page.evaluate("JSON.stringify(sessionStorage)") == '{"pikv-key":"file-key"}'
        assert "file-key" not in page.evaluate("JSON.stringify(localStorage) + document.cookie + location.href")
        page.reload()
        wait_ready(page)
        page.click("#key-button")
        page.click("#key-forget")
        expect(page.locator("#notice")).to_contain_text("wants an API key")
        assert page.evaluate("sessionStorage.length") == 0


def test_a_server_that_is_gone_and_comes_back(browser):
    with Server() as server:
        with visit(browser, server, says="ERR_(CONNECTION|INTERNET)") as page:
            wait_ready(page)
            page.context.set_offline(True)
            expect(page.locator("#notice")).to_contain_text("has not answered since")
            expect(page.locator("#state")).to_have_text("No answer")
            page.context.set_offline(False)
            expect(page.locator("#state")).to_have_text("Ready")
            expect(page.locator("#notice")).to_be_empty()
            server.stop()
            expect(page.locator("#notice")).to_contain_text("has not answered since")
            page.click("#run")
            expect(page.locator("#column-A .notice")).to_have_text("The server does not answer.")


def test_nothing_is_asked_while_paused(browser, choosing):
    with visit(browser, choosing) as page:
        wait_ready(page)
        page.click("#pause")
        page.wait_for_load_state("networkidle")
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.wait_for_timeout(1500)
        assert asked == []
        page.click("#pause")
        page.wait_for_event("request", lambda request: request.url.endswith("/metrics"))

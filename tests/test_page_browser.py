"""The page in a real headless Chromium: its contents, its controls and its messages."""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import orjson
import pytest
import requests
from flask import Flask
from playwright.sync_api import Browser, Page, expect
from werkzeug import Request, Response
from werkzeug.serving import make_server

from tests import browser as chromium
from tests.api_stand import MODEL, ApiStand, api_stand
from tests.conftest import Service
from tests.processes import ValkeyServer, eventually
from worker.contract import keys

#: Milliseconds that a slow machine may take for any step here.
PATIENCE = 30_000
HOSTILE = "<img src=x onerror=alert(1)>"

expect.set_options(timeout=PATIENCE)
pytestmark = pytest.mark.skipif(
    chromium.find() is None,
    reason="there is no Chromium, and none could be fetched: python -m tests.browser",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = chromium.find()
    assert program is not None
    with chromium.browser(program) as started:
        yield started


@dataclass
class Tab:
    """An open page, its console errors and warnings, and the hosts of its requests."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)


@pytest.fixture
def open_tab(browser: Browser) -> Iterator[Callable[..., Tab]]:
    contexts = []

    def open_tab(url: str, **options: Any) -> Tab:
        context = browser.new_context(**options)
        contexts.append(context)
        context.set_default_timeout(PATIENCE)
        # The clock runs automatically; a test may advance it.
        context.clock.install()
        tab = Tab(context.new_page())
        tab.page.on("pageerror", lambda error: tab.complaints.append(str(error)))
        tab.page.on(
            "console",
            # The page itself shows network errors.
            lambda said: (
                tab.complaints.append(said.text)
                if said.type in ("error", "warning") and "Failed to load resource" not in said.text
                else None
            ),
        )
        tab.page.on("request", lambda asked: tab.hosts.add(asked.url.split("/")[2]))
        tab.page.goto(url)
        return tab

    yield open_tab
    for context in contexts:
        context.close()


@contextmanager
def served(app: Any) -> Iterator[str]:
    """The address of an application that is served by threads of this process."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def stand(redis_url: str) -> Iterator[ApiStand]:
    with api_stand(redis_url) as made:
        yield made


@pytest.fixture
def url(stand: ApiStand) -> Iterator[str]:
    with served(stand.app) as address:
        yield address


def state(tab: Tab, words: str) -> None:
    expect(tab.page.locator("#state")).to_have_text(words)


def test_a_visitor_sees_the_worker_and_compares_texts(
    service: Service, open_tab: Callable[..., Tab]
) -> None:
    tab = open_tab(service.url)
    page = tab.page
    state(tab, "1 worker live")
    row = page.locator("#workers tr")
    expect(row).to_have_count(1)
    expect(row).to_contain_text("all-MiniLM-L6-v2, 384 d")
    expect(row).to_contain_text("cpu · torch · float32")

    texts = ["a cat sleeps", "a kitten naps", "the stock market fell", "shares lost value"]
    page.fill("#texts", "\n".join([*texts, "", "  "]))
    page.press("#texts", "Control+Enter")
    cells = page.locator(".heat td[data-row]")
    expect(cells).to_have_count(len(texts) ** 2)
    vectors = embedded(service.url, texts)
    shown = [float(text) for text in cells.all_inner_texts()]
    assert np.abs(np.array(shown).reshape(4, 4) - vectors @ vectors.T).max() < 0.0051
    expect(page.locator(".scatter circle")).to_have_count(len(texts))
    expect(page.locator(".pairs li").first).to_contain_text("a cat sleeps")
    expect(page.locator("#compared")).to_have_text(
        re.compile(r"^4 texts compared\. Most alike, at 0\.\d\d: a cat sleeps / a kitten naps$")
    )
    # It was an ordinary job, and the list of jobs does not show its texts.
    expect(page.locator("#jobs")).to_contain_text("succeeded")
    assert "kitten" not in page.locator("#jobs").inner_text()
    expect(page.locator("#throughput .chart")).to_have_attribute(
        "aria-label", re.compile(r"now [\d,]+ tokens/s, highest [\d,]+ tokens/s")
    )
    page.set_viewport_size({"width": 360, "height": 800})
    expect(page.locator(".scatter")).to_have_attribute("viewBox", re.compile("^0 0 3[0-5]"))
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert tab.complaints == []
    assert tab.hosts == {service.url.removeprefix("http://")}


def embedded(url: str, texts: list[str]) -> Any:
    body = {"input": texts, "encoding_format": "base64"}
    result = requests.post(f"{url}/jobs?wait=30", json=body, timeout=60).json()["result"]
    blob = result["embeddings"]
    return np.frombuffer(base64.b64decode(blob["data"]), "<f4").reshape(blob["shape"])


def test_the_map_shows_the_first_two_principal_components(
    url: str, open_tab: Callable[..., Tab]
) -> None:
    page = open_tab(url).page
    script = page.locator("script[type=module]").get_attribute("src")
    assert script is not None
    vectors = np.random.default_rng(3).normal(size=(12, 40)).astype(np.float32)
    vectors[:, :6] *= 4
    found = page.evaluate(
        """async ([address, vectors]) => {
          const { principal } = await import(new URL(address, document.baseURI));
          return principal(vectors);
        }""",
        [script.replace("page.js", "algebra.js"), vectors.tolist()],
    )
    centred = vectors - vectors.mean(axis=0)
    left, singular, _ = np.linalg.svd(centred.astype(np.float64), full_matrices=False)
    points = left[:, :2] * singular[:2]
    # An axis may point either way; here its largest coordinate is positive.
    points *= np.sign(points[np.abs(points).argmax(axis=0), [0, 1]])
    assert np.allclose(found["points"], points, atol=1e-5)
    assert np.allclose(found["shares"], (singular**2 / (singular**2).sum())[:2], atol=1e-9)


def test_texts_that_are_alike_or_the_same_do_not_break_the_map(
    stand: ApiStand, url: str, open_tab: Callable[..., Tab]
) -> None:
    tab = open_tab(url)
    tab.page.fill("#texts", "same\nsame")
    tab.page.click("#compare")
    expect(tab.page.locator("#jobs tr[data-state=queued]")).to_have_count(1)
    job_id = stand.client.get("/jobs").get_json()["data"][0]["id"]
    stand.succeed(job_id, np.ones((2, 4), dtype=np.float32))
    expect(tab.page.locator(".scatter circle")).to_have_count(2)
    assert "NaN" not in tab.page.locator(".scatter").inner_html()
    assert tab.complaints == []


def test_too_many_texts_are_refused_before_anything_is_sent(
    stand: ApiStand, url: str, open_tab: Callable[..., Tab]
) -> None:
    page = open_tab(url).page
    page.fill("#texts", "\n".join(f"text {number}" for number in range(65)))
    page.click("#compare")
    expect(page.get_by_role("alert")).to_have_text("There are 65 texts; 2 to 64 can be compared.")
    assert stand.messages() == []


def test_a_job_is_cancelled_with_the_keyboard(
    stand: ApiStand, url: str, open_tab: Callable[..., Tab]
) -> None:
    job_id = stand.submitted(["one", "two"])
    page = open_tab(url).page
    button = page.get_by_role("button", name=f"Cancel job {job_id[:8]}")
    button.focus()
    button.press("Enter")
    row = page.locator("#jobs tr")
    expect(row).to_have_attribute("data-state", "cancelled")
    expect(button).to_be_hidden()
    assert stand.client.get(f"/jobs/{job_id}").get_json()["status"] == "cancelled"


def test_a_job_that_goes_on_keeps_its_row_and_the_focus(
    stand: ApiStand, url: str, open_tab: Callable[..., Tab]
) -> None:
    job_id = stand.submitted(["text"] * 8)
    page = open_tab(url).page
    page.get_by_role("button", name=f"Cancel job {job_id[:8]}").focus()
    other = stand.submitted(["another"])
    stand.store.progress([(job_id, 1.0, 3, 8, 0)])
    row = page.locator(f"#jobs tr[data-key='{job_id}']")
    expect(row).to_contain_text("3 of 8")
    expect(page.locator("#jobs tr").first).to_have_attribute("data-key", other)
    assert page.evaluate("document.activeElement.ariaLabel") == f"Cancel job {job_id[:8]}"


def test_without_a_worker_the_page_says_what_to_do(
    stand: ApiStand, url: str, open_tab: Callable[..., Tab]
) -> None:
    stand.redis.delete(keys.workers(stand.settings.queue))
    tab = open_tab(url)
    state(tab, "No worker")
    expect(tab.page.locator("#notice")).to_contain_text("celery -A worker worker")
    expect(tab.page.locator("#workers-empty")).to_be_visible()
    expect(tab.page.locator("#jobs-empty")).to_contain_text("No job yet")
    stand.worker()
    state(tab, "1 worker live")
    expect(tab.page.locator("#notice")).to_be_hidden()
    assert tab.complaints == []


def test_while_redis_is_away_the_last_figures_stay_and_are_dated(
    valkey_server: Callable[..., ValkeyServer], open_tab: Callable[..., Tab]
) -> None:
    server = valkey_server()
    with api_stand(server.url) as stand, served(stand.app) as url:
        tab = open_tab(url)
        state(tab, "1 worker live")
        server.kill()
        state(tab, "Redis is away")
        expect(tab.page.locator("#notice")).to_contain_text("Figures are of")
        expect(tab.page.locator("#workers tr")).to_have_count(1)
        server.start()
        stand.worker()
        state(tab, "1 worker live")
        assert tab.complaints == []


def test_an_api_that_is_gone_is_said_to_be(stand: ApiStand, open_tab: Callable[..., Tab]) -> None:
    with served(stand.app) as url:
        tab = open_tab(url)
        state(tab, "1 worker live")
    state(tab, "API is away")


def test_where_keys_are_asked_for_the_page_asks_for_one(
    stand: ApiStand, open_tab: Callable[..., Tab]
) -> None:
    def guard(asked: Request) -> Response | None:
        """The pages are public, their contents are not."""
        data = asked.path.startswith(("/status", "/jobs"))
        if not data or asked.headers.get("Authorization") == "Bearer the-key":
            return None
        return refusal(401, "unauthorized")

    with served(behind(guard, stand.app)) as url:
        tab = open_tab(url)
        state(tab, "Key needed")
        box = tab.page.get_by_label("This service asks for an API key")
        expect(box).to_be_focused()
        expect(tab.page.locator("main")).to_be_hidden()
        tab.page.keyboard.type("wrong")
        tab.page.keyboard.press("Enter")
        state(tab, "Key refused")
        box.fill("the-key")
        tab.page.keyboard.press("Enter")
        state(tab, "1 worker live")
        expect(tab.page.locator("#key-form")).to_be_hidden()
        assert "the-key" not in tab.page.url
        assert tab.page.evaluate("[sessionStorage.length, localStorage.length]") == [1, 0]
        tab.page.reload()
        state(tab, "1 worker live")
        expect(tab.page.locator("main")).to_be_visible()
        tab.page.get_by_role("button", name="Forget key").click()
        state(tab, "Key needed")
        expect(tab.page.locator("main")).to_be_hidden()
        assert tab.complaints == []


def test_over_its_quota_the_page_waits_as_long_as_it_is_told(
    stand: ApiStand, open_tab: Callable[..., Tab]
) -> None:
    asked = []

    def quota(wanted: Request) -> Response | None:
        if wanted.path != "/status":
            return None
        asked.append(wanted.path)
        return refusal(429, "rate_limited", {"Retry-After": "600"})

    with served(behind(quota, stand.app)) as url:
        tab = open_tab(url)
        state(tab, "Over the quota")
        tab.page.clock.fast_forward(590_000)
        # Earlier requests of the page would have arrived before this one.
        tab.page.evaluate("fetch('healthz').then((answer) => answer.text())")
        assert len(asked) == 1
        tab.page.clock.fast_forward(10_000)
        eventually(lambda: len(asked) == 2)


def behind(guard: Callable[[Request], Response | None], app: Flask) -> Any:
    """An application behind `guard`, which answers some of its requests like a proxy."""

    def wsgi(environ: Any, start_response: Any) -> Any:
        return (guard(Request(environ)) or app)(environ, start_response)

    return wsgi


def refusal(status: int, code: str, headers: dict[str, str] | None = None) -> Response:
    body = orjson.dumps({"status": status, "code": code, "detail": "no"})
    return Response(body, status, headers, content_type="application/problem+json")


def test_names_that_others_make_up_stay_text(
    stand: ApiStand, url: str, open_tab: Callable[..., Tab]
) -> None:
    stand.worker(replace(MODEL, name=HOSTILE))
    raw: Any = stand.redis.hget(keys.workers(stand.settings.queue), "w1@here")
    stand.redis.hset(keys.workers(stand.settings.queue), HOSTILE, raw)
    stand.store.complete([])
    job_id = stand.submitted(["text"])
    stand.fail(job_id, HOSTILE, HOSTILE)
    tab = open_tab(url)
    expect(tab.page.locator("#workers")).to_contain_text(HOSTILE)
    expect(tab.page.locator("#jobs .status small")).to_have_text(HOSTILE)
    expect(tab.page.locator("#jobs .status")).to_have_attribute("title", HOSTILE)
    assert tab.page.locator("img").count() == 1
    assert tab.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_fits_its_window_and_can_be_read(
    stand: ApiStand, url: str, open_tab: Callable[..., Tab], width: int, scheme: str
) -> None:
    stand.submitted(["text"])
    tab = open_tab(url, viewport={"width": width, "height": 800}, color_scheme=scheme)
    expect(tab.page.locator("#jobs tr")).to_have_count(1)
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
    # WCAG 2.2, 1.4.3: 4.5 for text.
    for selector in ("body", ".note", ".state", "thead th", "#compare"):
        assert contrast(tab.page, selector) >= 4.5, selector


def contrast(page: Page, selector: str) -> float:
    """The contrast of an element's text and its background."""
    colours = page.locator(selector).first.evaluate(
        """(element) => {
          let behind = element;
          while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)")
            behind = behind.parentElement;
          return [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor];
        }"""
    )
    darker, lighter = sorted(luminance(colour) for colour in colours)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour: str) -> float:
    """Relative luminance of `rgb(r, g, b)`, as WCAG 2.2 defines it."""
    channels = np.array(re.findall(r"[\d.]+", colour)[:3], dtype=float) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_everything_that_can_be_operated_has_a_name_and_is_reached_by_tab(
    stand: ApiStand, url: str, open_tab: Callable[..., Tab]
) -> None:
    stand.submitted(["text"])
    page = open_tab(url).page
    expect(page.locator("#jobs button")).to_be_visible()
    wanted = ["Skip to the figures", "Cancel job", "Texts, one a line", "Compare"]
    wanted += [f"{name}, last five minutes" for name in ("Queue", "Throughput", "Batch fill")]
    met: list[str] = []
    for _ in range(25):
        page.keyboard.press("Tab")
        met.append(
            page.evaluate(
                """() => {
                  const at = document.activeElement;
                  return at.ariaLabel ?? at.labels?.[0]?.textContent ?? at.textContent.trim();
                }"""
            )
        )
    assert all(met)
    for name in wanted:
        assert any(one.startswith(name) for one in met), (name, met)


def test_a_chart_is_read_with_the_arrow_keys(
    stand: ApiStand, url: str, open_tab: Callable[..., Tab]
) -> None:
    page = open_tab(url).page
    chart = page.locator("#queue .chart")
    expect(chart).to_have_attribute("aria-label", re.compile("last five minutes"))
    chart.press("ArrowLeft")
    chart.press("ArrowLeft")
    expect(chart.locator("output")).to_have_text(re.compile("5 s ago$"))


def test_the_documents_show_every_operation_without_the_network(
    url: str, open_tab: Callable[..., Tab]
) -> None:
    tab = open_tab(f"{url}/docs")
    paths = requests.get(f"{url}/openapi.json", timeout=30).json()["paths"]
    operations = sum(len(methods) for methods in paths.values())
    expect(tab.page.locator(".opblock")).to_have_count(operations)
    tab.page.locator(".opblock", has_text="Submit a job").locator("button").first.click()
    expect(tab.page.get_by_text("It is accepted and will end").first).to_be_visible()
    assert tab.hosts == {url.removeprefix("http://")}
    assert tab.complaints == []

"""The console's page in a real browser, over a real server, and what a reader with other needs gets of it."""

from __future__ import annotations

import math
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
import requests
from playwright.sync_api import expect
from support.browsing import GIVE_UP_MS, opener, serious_in
from support.console_samples import BLUE_COLUMNS, console_of, ten_minutes
from support.ports import free_port

from deepseek_client.sandbox import SandboxConfig, running

ROOT = Path(__file__).parents[2]
SERVE = str(ROOT / "bin" / "serve")
PICTURES = Path(__file__).parent / "pictures"
START_S = 90
TOKEN = "a-token-of-the-test"
LATENCY_S = 0.2
CALLS = 40
CALLS_PER_S = 20
PLACES = 8  # requests that the server takes at a time


@pytest.fixture(scope="module")
def api():
    """The upstream: 200 ms for each answer."""
    with running(SandboxConfig(port=0, latency_ms=LATENCY_S * 1000, latency_sigma=0)) as sandbox:
        yield sandbox


class Site:
    """A server with its console."""

    def __init__(self, server, console_port):
        self.server = server
        self.url = f"http://127.0.0.1:{console_port}"

    def call(self, prompt="x"):
        """One call, as the console makes it: its answer says how long it ran."""
        headers = {"Authorization": f"Bearer {TOKEN}", "X-LLM-Source": "console"}
        with requests.Session() as http:
            http.trust_env = False
            answer = http.post(
                f"{self.server.url}/api/llm/chat", json={"prompt": prompt}, headers=headers, timeout=30
            )
        assert answer.status_code == 200
        return int(re.search(r"ran_ms=(\d+)", answer.headers["X-LLM-Calls"])[1]) / 1000

    def data(self):
        """What the page is told."""
        with requests.Session() as http:
            http.trust_env = False
            headers = {"Authorization": f"Bearer {TOKEN}"}
            return http.get(f"{self.url}/data", headers=headers, timeout=30).json()


@pytest.fixture(scope="module")
def site(serving, api, eventually):
    """bin/serve with a token and threads, and its console."""
    subprocess.run([ROOT / "bin" / "setup"], check=True)
    port = free_port()
    settings = {
        "CONSOLE_PORT": str(port),
        "DEEPSEEK_API_KEY": "sk-test",
        "DEEPSEEK_BASE_URL": api.url,
        "LLM_MAX_WORKERS": "20",
        "WEB_API_TOKEN": TOKEN,
        "WEB_CONCURRENCY": "1",  # of several nobody knows which one takes a connection
        "WEB_THREADS": str(PLACES),
    }
    with serving([SERVE], **settings) as server:
        site = Site(server, port)

        def answers():
            try:
                return bool(site.data()["now"]["has_server"])
            except requests.RequestException:
                return False

        eventually(answers, START_S)
        yield site


@pytest.fixture(scope="module")
def signed_in(site):
    """The cookies of a person who has given the token."""
    with requests.Session() as http:
        http.trust_env = False
        http.post(f"{site.url}/login", data={"token": TOKEN}, timeout=30).raise_for_status()
        cookies = [
            {"name": cookie.name, "value": cookie.value, "domain": "127.0.0.1", "path": "/"}
            for cookie in http.cookies
        ]
    return {"cookies": cookies, "origins": []}


@pytest.fixture
def page(open_page, site, signed_in):
    """The console's page, live."""
    page = open_page(site.url, storage_state=signed_in)
    expect(page.locator("#state")).to_have_text("Live", timeout=GIVE_UP_MS)
    return page


@pytest.fixture(scope="module")
def trying_page(browser, site, signed_in):
    """One live page for the tests that only send something."""
    with opener(browser) as open_one:
        page = open_one(site.url, storage_state=signed_in)
        expect(page.locator("#state")).to_have_text("Live", timeout=GIVE_UP_MS)
        yield page


def send(page, text, kind="Chat", *, is_beside=False):
    """Tries something, and waits until all answers are there."""
    page.get_by_label(kind, exact=True).check()
    if kind != "Batch":
        page.get_by_label("Async and sync side by side").set_checked(is_beside)
    page.locator("#text").fill(text)
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#answers article").first).to_be_visible(timeout=GIVE_UP_MS)
    expect(page.locator("#sending")).to_have_text("", timeout=GIVE_UP_MS)


def fact(article, name):
    """What stands beside a name in an answer."""
    return article.locator(f'dt:text-is("{name}") + dd').inner_text()


def test_token_prompt(open_page, site):
    """Who has no token is asked for it, a wrong one is told so, and the right one leads to the page."""
    page = open_page(site.url)
    assert page.url == f"{site.url}/login"
    page.get_by_label("Token (WEB_API_TOKEN)").fill("wrong")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_have_text("This is not the token.")
    assert page.get_by_label("Token (WEB_API_TOKEN)").get_attribute("aria-invalid") == "true"
    open_page.complaints.clear()  # the browser remarks on the 401
    page.get_by_label("Token (WEB_API_TOKEN)").fill(TOKEN)
    page.keyboard.press("Enter")
    expect(page.locator("#state")).to_have_text("Live", timeout=GIVE_UP_MS)


def test_load_is_seen(page, site, eventually):
    """Under a load of its own making the charts move, and the figures are within a tenth of what was really done."""
    before = page.locator('[data-chart="calls"] canvas').evaluate("canvas => canvas.toDataURL()")
    ran = []
    with ThreadPoolExecutor(PLACES) as threads:
        began = time.monotonic()
        for number in range(CALLS):
            threading.Event().wait(max(0.0, began + number / CALLS_PER_S - time.monotonic()))
            threads.submit(lambda: ran.append(site.call()))
    assert len(ran) == CALLS
    expect(page.locator('[data-chart="calls"] .plot')).not_to_have_attribute("data-points", "0")
    figure = page.locator("#figures").get_by_role("row").filter(has_text="Calls that arrive")
    expect(figure).not_to_contain_text("0.00 per second", timeout=GIVE_UP_MS)
    assert before != page.locator('[data-chart="calls"] canvas').evaluate("canvas => canvas.toDataURL()")

    def all_are_counted():
        numbers = numbers_of(site)
        return round(numbers["rate"] * numbers["seconds"]) >= CALLS

    eventually(all_are_counted)
    numbers = numbers_of(site)
    assert numbers["rate"] * numbers["seconds"] == pytest.approx(CALLS, rel=0.1)
    assert numbers["ran_mean_s"] == pytest.approx(sum(ran) / len(ran), rel=0.1)
    assert numbers["ran_p95_s"] == pytest.approx(sorted(ran)[math.ceil(0.95 * CALLS) - 1], rel=0.2)
    expect(page.locator("#verdict")).to_contain_text("LLM_MAX_WORKERS", timeout=GIVE_UP_MS)
    details = page.locator('[data-chart="ran"] details')
    details.locator("summary").click()
    expect(details.locator("tbody tr").last).to_contain_text(re.compile(r"0\.\d"), timeout=GIVE_UP_MS)


def numbers_of(site):
    return site.data()["sizing"]["numbers"]


def test_chat_side_by_side(trying_page):
    """A prompt goes both ways at once: each answer has its mode, engine, time, attempts and the request's id."""
    send(trying_page, "你好", is_beside=True)
    expect(trying_page.locator("#answers article")).to_have_count(2, timeout=GIVE_UP_MS)
    for article, mode, engine in zip(
        trying_page.locator("#answers article").all(), ("async", "sync"), ("threads", "inline"), strict=True
    ):
        assert article.locator(".text").inner_text() == "沙盒已收到：「你好」"
        assert (fact(article, "Mode"), fact(article, "Engine")) == (mode, engine)
        assert (fact(article, "Attempts"), fact(article, "Took")[-1]) == ("1", "s")
        assert fact(article, "Request id").startswith("console-")


def test_parse(trying_page):
    """An utterance is parsed with its scene and realm."""
    trying_page.get_by_label("Parse", exact=True).check()
    trying_page.get_by_label("Scene").fill("洞府")
    send(trying_page, "打坐", "Parse")
    expect(trying_page.locator("#answers .text")).to_contain_text("intent: ")


def test_batch(trying_page):
    """Each line is a prompt, each answer a line."""
    send(trying_page, "一\n二\n三", "Batch")
    expect(trying_page.locator("#answers .text")).to_have_text(
        "1. 沙盒已收到：「一」\n2. 沙盒已收到：「二」\n3. 沙盒已收到：「三」"
    )


def test_upstream_error(trying_page, api):
    """What the API refuses is a sentence and a code, and no answer."""
    api.script([{"fault": "status", "status": 422}])
    send(trying_page, "x")
    expect(trying_page.locator("#answers .error")).to_have_text(re.compile(r"\w+ .*\."))
    assert fact(trying_page.locator("#answers article"), "Code") == "upstream_rejected"


def test_html_is_text(trying_page):
    """A prompt with HTML in it, which the sandbox repeats, is shown letter by letter and runs nothing."""
    html = "<img src=x onerror=alert(1)><script>alert(2)</script><b>hi</b>"
    send(trying_page, html)
    expect(trying_page.locator("#answers .text")).to_have_text(f"沙盒已收到：「{html}」")
    assert trying_page.locator("#answers :is(img, script, b)").count() == 0


def test_language_switch(page):
    """The page changes its language and stays in it, also what is polled."""
    page.get_by_role("link", name="中文").click()
    expect(page.get_by_role("heading", name="控制台")).to_be_visible()
    expect(page.locator("#state")).to_have_text("实时", timeout=GIVE_UP_MS)
    expect(page.locator('[data-figure="breaker"]')).to_have_text("闭合")
    assert page.locator("html").get_attribute("lang") == "zh-Hans"
    page.reload()
    expect(page.get_by_role("heading", name="现况")).to_be_visible()
    page.get_by_role("link", name="English").click()
    expect(page.get_by_role("heading", name="Now")).to_be_visible()


def test_hidden_tab_polls_nothing(page):
    """A tab that nobody sees says so and asks nothing, until it is seen again."""
    hide = """is => { Object.defineProperty(document, "hidden", {value: is, configurable: true});
                      document.dispatchEvent(new Event("visibilitychange")); }"""
    page.evaluate(hide, True)
    expect(page.locator("#state")).to_have_text("Paused while the tab is hidden")
    with page.expect_request("**/data*"):
        page.evaluate(hide, False)
    expect(page.locator("#state")).to_have_text("Live", timeout=GIVE_UP_MS)


def test_keyboard(page):
    """The first stop leads past the head, and a prompt is sent without a mouse."""
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.locator("#text").focus()
    page.keyboard.type("hi")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Send")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#answers .text")).to_have_text("沙盒已收到：「hi」", timeout=GIVE_UP_MS)
    expect(page.get_by_role("button", name="Send")).to_be_focused()


@pytest.mark.parametrize("options", [
    {"color_scheme": "light", "locale": "en-GB"},
    {"color_scheme": "dark", "locale": "zh-CN"},
    {"color_scheme": "light", "locale": "en-GB", "viewport": {"width": 360, "height": 740}},
], ids=["light", "dark_chinese", "narrow"])  # fmt: skip
def test_everybody_can_read_it(open_page, site, signed_in, options):
    """axe-core finds nothing serious, with tables open and an answer shown, and nothing is wider than the screen."""
    page = open_page(site.url, storage_state=signed_in, **options)
    expect(page.locator("#state")).to_have_attribute("data-is", "live", timeout=GIVE_UP_MS)
    page.locator("#text").fill("hi")
    page.locator("#question button").click()
    expect(page.locator("#answers article")).to_be_visible(timeout=GIVE_UP_MS)
    for summary in page.locator(".chart:visible summary").all():
        summary.click()
    assert serious_in(page) == []
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0


def test_sign_in_can_be_read_by_everybody(open_page, site):
    """The form for the token has nothing serious either."""
    page = open_page(site.url)
    assert serious_in(page) == []


@pytest.fixture
def serve_samples(monkeypatch):
    """Serves the console of a server that never was, which has kept these samples: gives its address.

    It has to be named before `open_page`: a page that outlives its console complains.
    """
    monkeypatch.setattr("webapp.console.findings._ask", list)
    with ExitStack() as stack:
        yield lambda samples: stack.enter_context(console_of(samples))


def test_gap_is_a_gap(serve_samples, open_page):
    """Where the console has not looked for a minute nothing is drawn, and no line leads over it."""
    samples = [sample for second, sample in enumerate(ten_minutes(time.time())) if not 300 <= second < 360]
    page = open_page(serve_samples(samples), locale="en-GB", color_scheme="light")
    chart = page.locator('[data-chart="finish"]')
    expect(chart.locator(".plot")).to_have_attribute("data-points", re.compile(r"5\d\d"), timeout=GIVE_UP_MS)
    # Two frames: the chart has found its width and was drawn. Read once, as a browser warns of more.
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    columns = chart.evaluate(BLUE_COLUMNS)
    drawn = "".join(" #"[is_drawn] for is_drawn in columns).strip()
    longest = max(map(len, re.findall(" +", drawn)))
    assert longest / len(columns) == pytest.approx(60 / 600, rel=0.25)


def test_pictures(serve_samples, open_page, tmp_path):
    """The documents' pictures show the page as it is; UPDATE_PICTURES=1 makes them anew."""
    address = serve_samples(list(ten_minutes(time.time())))
    page = open_page(address, viewport={"width": 1280, "height": 940}, locale="en-GB", timezone_id="UTC")
    expect(page.locator('[data-chart="ran"] .plot')).to_have_attribute(
        "data-points", re.compile(r"5\d\d|600")
    )
    expect(page.locator("#findings li")).to_have_text("Nothing.")
    page.screenshot(path=tmp_path / "console.png")
    page.locator("#sizing").screenshot(path=tmp_path / "sizing.png")
    for picture in tmp_path.glob("*.png"):
        assert picture.stat().st_size < 150_000
        if os.environ.get("UPDATE_PICTURES"):
            PICTURES.mkdir(exist_ok=True)
            shutil.copy(picture, PICTURES)
        assert (PICTURES / picture.name).exists()


def test_all_workers_busy(page, site, api):
    """When no worker can answer anybody, the console shows just that."""
    api.script([{"fault": "hang", "times": PLACES}])
    body = b'{"prompt": "x"}'
    head = (
        f"POST /api/llm/chat HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with ExitStack() as stack:
        for _ in range(PLACES):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", site.server.port)))
            connection.sendall(head.encode() + body)
        expect(page.locator('[data-figure="busy"]')).to_have_text(f"{PLACES} of 20", timeout=GIVE_UP_MS)
        expect(page.locator("#state")).to_have_text("Live")
        probe = stack.enter_context(socket.create_connection(("127.0.0.1", site.server.port)))
        probe.settimeout(0.5)
        probe.sendall(b"GET /api/llm/status HTTP/1.1\r\nHost: x\r\n\r\n")
        with pytest.raises(TimeoutError):
            probe.recv(1)

"""A real browser for the console's page, and what a reader with other needs gets of it."""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack, contextmanager

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright

GIVE_UP_MS = 30_000


def find_chromium(environment):
    """Where it is. Without it the tests are skipped; where CI is set they fail, so that no skip hides there."""
    found = shutil.which("chromium", path=environment.get("PATH", ""))
    if found is None and environment.get("CI"):
        pytest.fail("chromium is not installed: .ci/run installs Debian's package of that name")
    if found is None:
        pytest.skip("chromium is not installed (Debian: chromium): the console's page is not tested")
    return found


@contextmanager
def chromium():
    """One chromium."""
    program = find_chromium(os.environ)
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        yield browser
        browser.close()


@contextmanager
def opener(browser):
    """Opens a page; afterwards nothing was asked of another origin, and no error was in the browser's console."""
    with ExitStack() as stack:
        complaints, asked, urls = [], [], []

        def open_one(url, **options):
            context = browser.new_context(**options)
            stack.callback(context.close)
            context.set_default_timeout(GIVE_UP_MS)
            page = context.new_page()
            page.on("console", lambda message: complaints.append((message.type, message.text)))
            page.on("pageerror", lambda error: complaints.append(("error", str(error))))
            page.on("dialog", lambda dialog: complaints.append(("error", dialog.message)))
            page.on("request", lambda request: asked.append(request.url))
            urls.append(url)
            page.goto(url)
            return page

        open_one.complaints = complaints
        yield open_one
        assert [text for kind, text in complaints if kind in ("error", "warning")] == []
        assert [url for url in asked if not url.startswith(tuple(f"{one}/" for one in urls))] == []


def serious_in(page):
    """What axe-core finds that keeps somebody from using the page: rule, elements."""
    found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    return [
        (violation["id"], [node["html"] for node in violation["nodes"]])
        for violation in found
        if violation["impact"] in ("serious", "critical")
    ]

"""The console's part on tasks in a real browser, over a real queue."""

from __future__ import annotations

from dataclasses import replace

import pytest
from playwright.sync_api import expect
from support.browsing import GIVE_UP_MS, serious_in
from support.console_samples import console_of

from deepseek_client.tasks import Jobs
from deepseek_client.tasks.ledger import Ledger
from webapp.console.sample import Sample


@pytest.fixture
def jobs(settings, own_queue):
    """The queue from the side of who submits."""
    made = Jobs(replace(settings, celery_broker_url=own_queue.url))
    yield made
    made.close()


@pytest.fixture
def console(own_queue, monkeypatch):
    """The address of a console whose deployment has this queue."""
    monkeypatch.setenv("CELERY_BROKER_URL", own_queue.url)
    monkeypatch.setattr("webapp.console.findings._ask", list)
    with console_of([Sample(1.0)]) as address:
        yield address


@pytest.fixture
def open_tasks(console, open_page):
    """Opens it; the page ends before the console does."""
    return lambda **options: open_page(console, **{"locale": "en-GB", **options})


def figure(page, name):
    """The text of one."""
    return page.locator(f'[data-figure="tasks_{name}"]')


def look_again(page):
    """Has the page ask now, as when its tab is seen again."""
    page.evaluate('document.dispatchEvent(new Event("visibilitychange"))')


def cancel(page, task_id):
    """Presses the button of a task."""
    page.locator(f'tr[data-id="{task_id}"]').get_by_role("button").click()


def test_task_is_seen_and_cancelled(open_tasks, jobs, own_queue):
    """Running and queued tasks have a row each, one press ends one of them, and keys reach the next one's button."""
    ids = [jobs.submit("chat", ("<b>x</b>",)).task_id for _ in range(3)]
    ledger = Ledger(own_queue.url, limit=9, ttl_s=60)
    ledger.start(ids[0], "a", 60, "channel")
    ledger.attend("a worker", 60)
    ledger.close()
    page = open_tasks()
    rows = page.locator("#open-tasks tbody tr")
    expect(rows).to_have_count(3, timeout=GIVE_UP_MS)
    assert [row.get_attribute("data-id") for row in rows.all()] == ids
    assert [figure(page, name).inner_text() for name in ("queued", "running", "workers")] == ["2", "1", "1"]
    expect(rows.first).to_contain_text("running")
    cancel(page, ids[1])
    expect(page.locator("#said")).to_have_text("The task was cancelled.", timeout=GIVE_UP_MS)
    expect(rows).to_have_count(2, timeout=GIVE_UP_MS)
    expect(page.get_by_role("heading", name="Tasks")).to_be_focused()
    assert [jobs.look(task_id).status for task_id in ids] == ["started", "cancelled", "pending"]
    button = rows.last.get_by_role("button")
    button.focus()
    with page.expect_response("**/tasks"):
        look_again(page)
    expect(button).to_be_focused()
    assert serious_in(page) == []


def test_queue_that_is_away_is_a_sentence(open_tasks, jobs, own_queue):
    """Its server's death is one sentence in a page that goes on, and its return ends that."""
    jobs.submit("chat", ("x",))
    page = open_tasks()
    expect(figure(page, "queued")).to_have_text("1", timeout=GIVE_UP_MS)
    own_queue.kill()
    look_again(page)
    expect(page.locator("#queue-away")).to_have_text(
        "The queue's server does not answer, so that nothing is known of its tasks now.", timeout=GIVE_UP_MS
    )
    expect(figure(page, "queued")).to_have_text("–")
    expect(page.locator("#state")).to_have_text("Live", timeout=GIVE_UP_MS)
    own_queue.start()
    expect(figure(page, "queued")).to_have_text("1", timeout=GIVE_UP_MS)
    expect(page.locator("#queue-away")).to_be_hidden()


def test_tasks_in_chinese_on_a_narrow_screen(open_tasks, jobs):
    """The part speaks Chinese, and nothing of it is wider than the screen."""
    jobs.submit("chat", ("x",))
    page = open_tasks(locale="zh-CN", viewport={"width": 360, "height": 740}, color_scheme="dark")
    expect(page.locator("#open-tasks tbody")).to_contain_text("排队中", timeout=GIVE_UP_MS)
    expect(page.get_by_role("button", name="取消")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    assert serious_in(page) == []

"""The Celery application: its settings, and that it says no secret."""

import logging
import urllib.request
from dataclasses import replace
from types import SimpleNamespace

import pytest
from support.patience import GIVE_UP_S
from support.queue_server import PASSWORD

from deepseek_client import ConfigError, Settings
from deepseek_client.tasks.app import celery_app, main, make_app, worker_arguments
from deepseek_client.tasks.metrics_server import MetricsServer
from deepseek_client.tasks.runner import lease_s


@pytest.fixture
def app(task_settings):
    """An application of these settings."""
    made = make_app(task_settings)
    yield made
    made.close()


def test_celery_keeps_and_repeats_nothing(app):
    """Late acknowledgement, no result, no second try, no events, JSON alone."""
    conf = app.conf
    assert conf.task_acks_late
    assert conf.task_reject_on_worker_lost
    assert conf.task_ignore_result
    assert not conf.task_publish_retry
    assert not conf.worker_send_task_events
    assert not conf.worker_enable_remote_control
    assert conf.accept_content == ["json"]
    assert conf.worker_prefetch_multiplier == 1
    assert app.backend.as_uri() == "disabled://"


@pytest.mark.parametrize("pool", ["celery.concurrency.gevent", "celery.concurrency.eventlet"])
def test_pools_that_would_starve_calls_are_refused(app, pool):
    """By a sentence that says what to do."""
    [companions] = [step for step in app.steps["worker"] if step.__name__ == "_Companions"]
    with pytest.raises(ConfigError, match="gevent"):
        companions(SimpleNamespace(pool_cls=type("TaskPool", (), {"__module__": pool})))


def test_message_stays_noted_for_as_long_as_a_task_may_last(app, task_settings):
    """kombu gives it back after the lease, wherever it looks for that number."""
    seconds = lease_s(task_settings)
    assert seconds == task_settings.deadline_s + 10
    assert lease_s(replace(task_settings, use_async=False)) >= 600
    assert app.conf.visibility_timeout == seconds
    assert app.conf.broker_transport_options["visibility_timeout"] == seconds
    assert app.conf.result_backend_transport_options["visibility_timeout"] == seconds


def test_worker_has_a_thread_for_each_call(app, task_settings):
    """LLM_MAX_WORKERS is what a worker process calls at once."""
    assert app.conf.worker_pool == "threads"
    assert app.conf.worker_concurrency == task_settings.max_workers


def test_environment_is_read_when_it_is_needed(monkeypatch, queue):
    """`celery -A deepseek_client.tasks.app` finds the broker of the environment."""
    monkeypatch.setenv("CELERY_BROKER_URL", queue.url)
    assert make_app().conf.broker_url == queue.url
    assert celery_app.main == "deepseek_client"


def test_worker_without_a_broker_says_so():
    """Celery would try RabbitMQ on this machine."""
    with pytest.raises(ConfigError, match="CELERY_BROKER_URL"):
        main(make_app(Settings()))


def test_worker_is_told_to_be_quiet():
    """No gossip, no mingling, no heartbeat: the queue's server is asked for tasks and for nothing else."""
    assert {"worker", "--without-gossip", "--without-mingle", "--without-heartbeat"} < {*worker_arguments()}


def test_workers_lines_show_no_secret(app, task_settings, capsys):
    """Neither the key nor the password of the queue, whoever logs them."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    try:
        app.log.setup_logging_subsystem(logging.INFO)
        logging.getLogger("kombu").warning(
            "at %s with %s", task_settings.celery_broker_url, task_settings.api_key
        )
    finally:
        for handler in [each for each in root.handlers if each not in before]:
            root.removeHandler(handler)
        root.setLevel(level)
    line = capsys.readouterr().err
    assert "at redis://:***@127.0.0.1" in line
    assert PASSWORD not in line


def test_metrics_have_a_port_of_their_own():
    """Text for Prometheus, and nothing else."""
    server = MetricsServer("127.0.0.1:0")
    server.start()
    host, port = server._server.server_address
    try:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://{host}:{port}/metrics", timeout=GIVE_UP_S) as answer:
            assert b"deepseek_tasks_finished_total" in answer.read()
        with pytest.raises(urllib.error.HTTPError, match="404") as refused:
            opener.open(f"http://{host}:{port}/", timeout=GIVE_UP_S)
        refused.value.close()
    finally:
        server.stop()


def test_taken_port_costs_the_metrics_and_not_the_worker(caplog):
    """It is said, and no more."""
    first = MetricsServer("127.0.0.1:0")
    first.start()
    try:
        second = MetricsServer(f"127.0.0.1:{first._server.server_address[1]}")
        second.start()
        second.stop()
        assert "WORKER_METRICS" in caplog.text
    finally:
        first.stop()


def test_settings_show_no_password(task_settings):
    """Neither in the repr nor in a refusal."""
    assert PASSWORD not in repr(replace(task_settings, celery_result_backend=task_settings.celery_broker_url))

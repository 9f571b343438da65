"""The message that we write is the one that Celery and kombu would write, and that they read."""

import base64
import json

import kombu
import pytest
from celery import Celery

from deepseek_client.tasks.app import make_app
from deepseek_client.tasks.message import QUEUE, TASK_NAME, message_for

ID = "abvqq245uczzxin2jbmpruxovgffifj3"


@pytest.fixture
def app(queue, settings):
    """A Celery application as workers have it."""
    from dataclasses import replace

    made = make_app(replace(settings, celery_broker_url=queue.url))
    yield made
    made.close()


def test_message_is_that_of_celery(app, queue):
    """Celery's own message of the task differs in what names its sender and in nothing else: a change there shows."""
    app.finalize()
    app.tasks[TASK_NAME].apply_async(args=(ID,), task_id=ID)
    theirs = json.loads(queue.client().lindex("{deepseek}:queue", 0))
    ours = json.loads(message_for(ID))
    bodies = [json.loads(base64.b64decode(message.pop("body"))) for message in (theirs, ours)]
    assert bodies[0] == bodies[1] == [[ID], {}, bodies[0][2]]
    for message in (theirs, ours):
        assert message["headers"].pop("origin")
        assert message["properties"].pop("delivery_tag")
        message["properties"].pop("reply_to")
    assert ours == theirs


def test_kombu_reads_the_message(app, queue):
    """A consumer of kombu gets the id alone, and notes the message under our tag while it holds it."""
    client = queue.client()
    client.lpush("{deepseek}:queue", message_for(ID, sends=3))
    got = []
    with app.connection_for_read() as connection:
        consumed = kombu.Queue(QUEUE, kombu.Exchange(QUEUE), routing_key=QUEUE)
        with connection.Consumer(consumed, callbacks=[lambda body, message: got.append((body, message))]):
            connection.drain_events(timeout=20)
            body, message = got[0]
            assert body[:2] == [[ID], {}]
            assert message.headers["task"] == TASK_NAME
            assert client.hkeys("{deepseek}:unacked") == [f"{ID}.3".encode()]
            message.ack()
    assert client.exists("{deepseek}:unacked") == 0


def test_message_holds_the_id_and_nothing_else():
    """Whatever changes between two tasks' messages is their id."""
    other = "b" * 32
    first, second = (json.loads(message_for(each)) for each in (ID, other))
    first["body"], second["body"] = (base64.b64decode(each["body"]).decode() for each in (first, second))
    assert json.dumps(first).replace(ID, other) == json.dumps(second)


def test_application_is_none_of_celerys_current_ones(app):
    """An application of the deployment's own stays Celery's current one."""
    assert Celery("theirs").main == "theirs"
    assert app.main == "deepseek_client"

import json
import socket
import threading

from support.serving import reply

from .answers import HUNG_UP, OK, WRONG
from .calls import Call, HangUp
from .load import Clients, Tally

CHAT = Call("chat", "POST", "/api/llm/chat", b'{"prompt": "#7#"}', ("#7#",))
GIVE_UP_S = 20


def answer(handler):
    """What the application would answer to anything."""
    reply(handler, body=json.dumps({"text": "x"}).encode())


def clients_of(server):
    """Clients of this server, which may leave without a traceback in the output."""
    server._server.handle_error = lambda *args: None
    return Clients(server.url.removeprefix("http://"), seed=1)


def test_each_request_has_its_outcome(serve):
    """Requests that are sent at once are all answered and counted."""
    clients = clients_of(serve(answer))
    clients.send_together([CHAT] * 5)
    assert clients.tally.snapshot() == (5, {OK: 5})


def test_client_that_leaves(serve):
    """Who hangs up has no answer, and that is an outcome, with a reset and without."""
    clients = clients_of(serve(answer))
    clients.send_together([CHAT._replace(hang_up=HangUp(1.0, 0.0, resets)) for resets in (True, False)])
    assert clients.tally.snapshot() == (2, {HUNG_UP: 2})


def test_server_that_does_not_answer(serve):
    """A connection that ends before the answer is a wrong outcome, which says what happened."""
    clients = clients_of(serve(lambda handler: handler.connection.shutdown(socket.SHUT_RDWR)))
    clients.send_together([CHAT])
    assert clients.tally.snapshot() == (1, {WRONG: 1})
    assert clients.tally.wrong[0].startswith(f"{WRONG} POST /api/llm/chat (chat): no answer: ")


def test_load_ends(serve):
    """Between `begin` and `end` all clients send; after it no client is left, and each request has an outcome."""
    served = threading.Semaphore(0)

    def count(handler):
        answer(handler)
        served.release()

    clients = clients_of(serve(count))
    clients.begin()
    assert all(served.acquire(timeout=GIVE_UP_S) for _ in range(50))
    clients.end()
    sent, outcomes = clients.tally.snapshot()
    assert sent == sum(outcomes.values()) >= 50
    assert [thread for thread in threading.enumerate() if thread.name.startswith("soak-client")] == []


def test_wrong_answers_are_kept_in_bounds():
    """The first wrong answers are kept to be shown, all are counted."""
    tally = Tally()
    for number in range(100):
        tally.begin()
        tally.end(f"{WRONG} number {number}")
    assert (tally.outcomes[WRONG], tally.wrong[0], len(tally.wrong)) == (100, f"{WRONG} number 0", 10)

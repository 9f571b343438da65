import socket
import threading

from support.serving import reply

from .answers import OK, WRONG
from .idle import IdleClients, half_probes
from .load import Tally

GIVE_UP_S = 20


def idle_clients_of(server):
    """Idle clients of this server, which may leave without a traceback in the output."""
    server._server.handle_error = lambda *args: None
    return IdleClients(server.url.removeprefix("http://"), Tally())


def test_silent_clients_ask_in_the_end(serve):
    """Each that was silent sends a request, which is one of the run's and must be answered."""
    idle = idle_clients_of(serve(lambda handler: reply(handler, body=b"{}")))
    idle.begin()
    assert idle._tally.snapshot() == (0, {})
    idle.end()
    sent, outcomes = idle._tally.snapshot()
    assert sent > 0
    assert outcomes == {OK: sent}


def test_silent_client_that_was_forgotten(serve):
    """No answer after the silence is a wrong outcome."""
    idle = idle_clients_of(serve(lambda handler: handler.connection.shutdown(socket.SHUT_RDWR)))
    idle.begin()
    idle.end()
    sent, outcomes = idle._tally.snapshot()
    assert outcomes == {WRONG: sent}
    assert "after a long silence" in idle._tally.wrong[0]


def test_half_probes(serve):
    """None of the probes is whole, so none is answered, before the end of the block; then each is."""
    answered = threading.Semaphore(0)

    def answer(handler):
        reply(handler, body=b"{}")
        answered.release()

    server = serve(answer)
    with half_probes(server.url.removeprefix("http://"), 3):
        assert not answered.acquire(blocking=False)
    assert all(answered.acquire(timeout=GIVE_UP_S) for _ in range(3))
    assert not answered.acquire(blocking=False)

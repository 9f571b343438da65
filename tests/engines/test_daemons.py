"""The pool's executor is the standard library's, with threads that keep no process."""

import asyncio
import contextvars
import gc
import threading
import weakref
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait

import pytest
from support.patience import GIVE_UP_S

from deepseek_client import WorkerPool
from deepseek_client.engines.daemons import DaemonExecutor, WorkItem


def test_the_pool_runs_on_a_thread_pool_executor_of_its_size():
    """LLM_MAX_WORKERS sizes a concurrent.futures.ThreadPoolExecutor, and its queue is where one looks for it."""
    pool = WorkerPool(workers=3, queue_limit=0)
    assert isinstance(pool._executor, ThreadPoolExecutor)
    assert (pool._executor._max_workers, pool._executor._work_queue.qsize()) == (3, 0)


def test_tasks_run_on_as_many_daemons_as_are_needed():
    """Two tasks at once have two threads, a third waits, and no fourth thread is started for it."""
    meeting, gate = threading.Barrier(3, timeout=GIVE_UP_S), threading.Event()

    def task() -> threading.Thread:
        meeting.wait()
        gate.wait(GIVE_UP_S)
        return threading.current_thread()

    with DaemonExecutor(2, "daemon") as executor:
        first = [executor.submit(task) for _ in range(2)]
        meeting.wait()
        third = executor.submit(threading.current_thread)
        assert executor._work_queue.qsize() == 1
        gate.set()
        threads = {future.result(GIVE_UP_S) for future in first}
        assert third.result(GIVE_UP_S) in threads
        assert executor._threads == threads
        assert {(thread.name, thread.daemon) for thread in threads} == {
            ("daemon_0", True),
            ("daemon_1", True),
        }
    assert not any(thread.is_alive() for thread in threads)


def test_an_idle_thread_is_used_again():
    """Tasks one after another need one thread."""
    with DaemonExecutor(5, "daemon") as executor:
        ran = set()
        for _ in range(20):
            ran.add(executor.submit(threading.current_thread).result(GIVE_UP_S))
            while executor._idle == 0:  # it counts itself after its result is there
                pass
        assert len(ran) == 1


def test_shutdown_does_what_was_submitted_and_refuses_more():
    """Tasks that were put before the shutdown are done, or cancelled when that is asked for."""
    for cancels in (False, True):
        gate = threading.Event()
        executor = DaemonExecutor(1, "daemon")
        first, second = executor.submit(gate.wait, GIVE_UP_S), executor.submit(int)
        if cancels:
            while not first.running():
                pass
        executor.shutdown(wait=False, cancel_futures=cancels)
        with pytest.raises(RuntimeError, match="shutdown"):
            executor.submit(int)
        gate.set()
        assert first.result(GIVE_UP_S) is True
        if cancels:
            with pytest.raises(CancelledError):
                second.result()
        else:
            assert second.result(GIVE_UP_S) == 0
        executor.shutdown()


def test_threads_end_with_their_executor():
    """An executor that nobody holds any more ends its threads, and each of them tells the next."""
    meeting = threading.Barrier(3, timeout=GIVE_UP_S)
    executor = DaemonExecutor(2, "daemon")
    futures = [executor.submit(meeting.wait) for _ in range(2)]
    meeting.wait()
    wait(futures, GIVE_UP_S)
    threads, gone = list(executor._threads), weakref.ref(executor)
    del executor
    gc.collect()
    for thread in threads:
        thread.join(GIVE_UP_S)
    assert (gone(), [thread.is_alive() for thread in threads]) == (None, [False, False])


def test_a_task_that_raises_costs_no_thread():
    """Whatever a task raises is its future's, and its thread goes on."""
    with DaemonExecutor(1, "daemon") as executor:
        failed = executor.submit(exec, "raise SystemExit(3)")
        assert isinstance(failed.exception(GIVE_UP_S), SystemExit)
        assert executor.submit(int).result(GIVE_UP_S) == 0


def test_a_task_is_performed_or_cancelled():
    """A task gets a thread or, where the executor is shut down before that, hears that it has none."""
    taken, gate, told = threading.Event(), threading.Event(), []

    class Told(WorkItem):
        def __call__(self) -> None:
            taken.set()
            gate.wait(GIVE_UP_S)
            told.append("performed")

        def cancel(self) -> None:
            told.append("cancelled")
            gate.set()

    executor = DaemonExecutor(1, "daemon")
    for _ in range(2):
        executor.submit(Told())
    assert taken.wait(GIVE_UP_S)
    executor.shutdown(wait=True, cancel_futures=True)
    assert told == ["cancelled", "performed"]
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(Told())


async def test_an_event_loop_gets_a_tasks_own_future():
    """`run_in_executor` hands the future of a task on as it is: none of concurrent.futures is chained to it."""
    loop = asyncio.get_running_loop()

    class Kept(WorkItem):
        def __call__(self) -> None:
            loop.call_soon_threadsafe(self.future.set_result, "kept")

    task = Kept()
    task.future = loop.create_future()
    with DaemonExecutor(1, "daemon") as executor:
        given = loop.run_in_executor(executor, task)
        assert given is task.future
        assert await given == "kept"


async def test_awaited_task_has_the_callers_context():
    """What `run` awaits is run by a thread of the executor, and sees the caller's contextvars."""
    word = contextvars.ContextVar("word")
    word.set("ours")
    with DaemonExecutor(1, "daemon") as executor:
        seen = await executor.run(lambda: (word.get(), threading.current_thread().name))
    assert seen == ("ours", "daemon_0")

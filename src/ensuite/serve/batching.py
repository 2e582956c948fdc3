"""Micro-batching: what callers ask for while the worker is busy is answered in its next call."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Generic, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")


class Batcher(Generic[Q, A]):
    """Answers questions of many callers with few calls of ``answer``, in a thread of its own.

    Nothing waits for company: a lone question is answered at once. What arrives while a call is under way (a
    millisecond or two) forms the next batch, so that batches grow with the load by themselves.

    Parameters
    ----------
    answer
        Answers a list of questions with a list as long; an exception is the answer to each of them.
    most
        The largest batch.
    name
        Of the thread.
    on_batch
        Told the size of each batch.
    """

    def __init__(
        self,
        answer: Callable[[list[Q]], list[A]],
        most: int,
        name: str,
        on_batch: Callable[[int], None] = lambda size: None,
    ):
        self._answer = answer
        self._most = most
        self._on_batch = on_batch
        self._waiting: deque[tuple[Q, asyncio.Future[A]]] = deque()
        self._busy = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)

    async def ask(self, question: Q) -> A:
        """Return the answer to ``question``. A caller that gives up while it waits costs no work."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[A] = loop.create_future()
        self._waiting.append((question, future))
        if not self._busy:
            self._busy = True
            loop.call_soon(self._start, loop)  # after those that are asked in this very turn of the loop
        return await future

    def close(self) -> None:
        """Let the call that is under way end; questions that still wait are not answered."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._waiting = deque(pair for pair in self._waiting if not pair[1].done())
        batch = list(islice(self._waiting, self._most))
        if not batch:
            self._busy = False
            return
        for _ in batch:
            self._waiting.popleft()
        self._on_batch(len(batch))
        call = loop.run_in_executor(self._thread, self._answer, [question for question, _ in batch])
        call.add_done_callback(lambda done: self._finish(loop, batch, done))

    def _finish(
        self,
        loop: asyncio.AbstractEventLoop,
        batch: list[tuple[Q, asyncio.Future[A]]],
        done: asyncio.Future[list[A]],
    ) -> None:
        self._start(loop)  # the thread works on while the answers are handed out
        if done.cancelled():
            for _, future in batch:
                future.cancel()
            return
        error = done.exception()
        for number, (_, future) in enumerate(batch):
            if future.done():  # its caller has given up
                continue
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(done.result()[number])

"""Micro-batches: company when there is some, no waiting when there is none."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from ensuite.serve.batching import Batcher


def run(work, answer, **options):
    async def inside():
        batcher = Batcher(answer, **({"most": 8, "name": "test"} | options))
        try:
            return await work(batcher)
        finally:
            batcher.close()

    return asyncio.run(inside())


def test_what_arrives_while_the_worker_is_busy_goes_together():
    sizes, gate = [], threading.Event()

    def answer(questions):
        sizes.append(len(questions))
        gate.wait(5)
        return [2 * question for question in questions]

    async def work(batcher):
        first = asyncio.create_task(batcher.ask(1))
        await asyncio.sleep(0.05)
        rest = [asyncio.create_task(batcher.ask(number)) for number in range(2, 12)]
        await asyncio.sleep(0.05)
        gate.set()
        return await asyncio.gather(first, *rest)

    seen = []
    assert run(work, answer, on_batch=seen.append) == [2 * number for number in range(1, 12)]
    assert sizes == seen == [1, 8, 2]


def test_a_lone_question_does_not_wait():
    async def work(batcher):
        begun = time.perf_counter()
        for number in range(50):
            await batcher.ask(number)
        return (time.perf_counter() - begun) / 50

    assert run(work, list) < 0.01


def test_those_of_one_moment_go_together():
    sizes = []

    def answer(questions):
        sizes.append(len(questions))
        return questions

    async def work(batcher):
        return await asyncio.gather(*(batcher.ask(number) for number in range(5)))

    assert run(work, answer) == [0, 1, 2, 3, 4]
    assert sizes == [5]


def test_an_exception_is_the_answer_to_all_and_the_next_batch_goes_on():
    def answer(questions):
        if 13 in questions:
            raise ValueError("13")
        return questions

    async def work(batcher):
        failed = await asyncio.gather(batcher.ask(13), batcher.ask(1), return_exceptions=True)
        return failed, await batcher.ask(2)

    failed, then = run(work, answer)
    assert [str(error) for error in failed] == ["13", "13"]
    assert then == 2


def test_who_gives_up_costs_no_work():
    asked, gate = [], threading.Event()

    def answer(questions):
        asked.extend(questions)
        gate.wait(5)
        return questions

    async def work(batcher):
        first = asyncio.create_task(batcher.ask(1))
        await asyncio.sleep(0.05)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(batcher.ask(2), 0.05)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(first), 0.01)
        last = asyncio.create_task(batcher.ask(3))
        await asyncio.sleep(0.01)
        gate.set()
        return await first, await last

    assert run(work, answer) == (1, 3)
    assert asked == [1, 3]

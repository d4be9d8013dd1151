"""Threads for work that leaves the interpreter's lock alone: reading, hashing and decompressing a frame do."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from securecore import limits

_Result = TypeVar("_Result")


def usable_cpus() -> int:
    """Return how many threads are of use: one for each CPU that this process may run on, at most MAX_VERIFIERS."""
    return min(len(os.sched_getaffinity(0)), limits.MAX_VERIFIERS)


def in_order(jobs: Iterable[Callable[[], _Result]], threads: int) -> Generator[_Result, None, None]:
    """Yield what each job returns, in the order of the jobs, while as many of the next ones are done as there are threads.

    At most twice as many jobs are taken as there are threads. What a job raises is raised in its turn. Close the iterator when it
    is left early: then what is under way is waited for, and nothing else is begun.
    """
    if threads < 2:
        yield from (job() for job in jobs)
        return
    pending: deque[Future[_Result]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="verify") as pool:
        try:
            for job in jobs:
                pending.append(pool.submit(job))
                if len(pending) == 2 * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()

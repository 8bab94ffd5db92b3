"""Work shared out to a few processes."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor


def parallel_map(function: Callable, items: Sequence) -> Iterator:
    """Map ``function`` over ``items`` in up to four processes, in their order.

    Both must be picklable, and the calling script guarded by ``__name__ == "__main__"``.
    """
    ignore_interrupt = {"initializer": signal.signal, "initargs": (signal.SIGINT, signal.SIG_IGN)}  # main's to report
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(4, os.cpu_count() or 1), spawn, **ignore_interrupt) as pool:
        yield from pool.map(function, items)

"""Processes that need not import everything anew, and work shared out to a few of them."""

import functools
import gc
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext

from common.runtime import signals
from common.runtime.environment import REPOSITORY, cores

# What libraries must be told so that importing them starts no thread: NumPy's matrix products, which threadpoolctl can
# give more threads later, and the allocator of pyarrow, which pandas imports where it is installed.
WITHOUT_THREADS = {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}


def import_ahead(*modules: str) -> None:
    """Let a server import ``modules`` beside this process: what ``fork_context`` starts has them then.

    A process has one server, with the modules of the first call. It is Python's own and ends with this process.
    """
    if sys.platform != "linux":
        return
    multiprocessing.set_forkserver_preload(list(modules))
    before = dict(os.environ)
    paths = filter(None, (str(REPOSITORY), before.get("PYTHONPATH")))
    os.environ.update(WITHOUT_THREADS, PYTHONPATH=os.pathsep.join(paths))
    resource_tracker.ensure_running()  # of the standard library; as it starts it would end the block below
    try:
        with signals.blocked():
            forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)


@functools.cache
def fork_context() -> BaseContext | None:
    """Return the context of processes that are forks of the server of ``import_ahead``; it waits for the imports.

    None on systems but Linux, and where an import started a thread: forking is safe only without
    (https://docs.python.org/3/library/os.html#os.fork).
    """
    if sys.platform != "linux":
        return None
    context = multiprocessing.get_context("forkserver")
    first = context.Process(target=_exit_with_threads_of_the_server)
    first.start()
    first.join()
    return context if first.exitcode == 1 else None


def _exit_with_threads_of_the_server() -> None:
    os._exit(len(os.listdir(f"/proc/{os.getppid()}/task")))


def parallel_map(function: Callable, items: Sequence, processes: int | None = None) -> Iterator:
    """Map ``function`` over ``items`` in so many processes (default: the cores, up to four), in their order.

    Both must be picklable, and the calling script guarded by ``__name__ == "__main__"``.
    """
    import_ahead(function.__module__)
    context = fork_context() or multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes or min(4, cores()), context, _become_worker) as pool:
        yield from pool.map(function, items)


def _become_worker() -> None:
    """Leave Ctrl-C to the main process, hear its SIGTERM, and never look for garbage among what is imported."""
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signals.unblock()

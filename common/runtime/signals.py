"""Ctrl-C, SIGTERM and SIGUSR1, held back until the state is consistent and saved."""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator

# What a cluster sends before it takes a node away or at a time limit (Windows has no SIGUSR1).
END_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))


class Terminated(BaseException):
    """SIGTERM or SIGUSR1 arrived: like KeyboardInterrupt, it passes every ``except Exception`` on its way out."""


def raise_on_sigterm() -> None:
    """Let SIGTERM and SIGUSR1 unwind the stack like Ctrl-C does, so that what was reached is saved.

    Only the first one does: Slurm signals every process of a job, and a grid passes on to its runs what it was sent
    itself, so that the second one would interrupt the saving. SIGKILL ends a process that hangs.
    """
    if threading.current_thread() is threading.main_thread():
        for number in END_SIGNALS:
            signal.signal(number, _raise_terminated)


def _raise_terminated(signum: int, frame: object) -> None:
    _hear_no_more()
    raise Terminated


@contextlib.contextmanager
def blocked() -> Iterator[None]:
    """Let a process that is started within this block, and its children, wait with ``END_SIGNALS`` until ``unblock``.

    Slurm signals every process of a job: a server that starts others must not end before them. POSIX only.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, END_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def unblock() -> None:
    """Hear ``END_SIGNALS`` from now on, also one that came before."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, END_SIGNALS)


def _hear_no_more() -> None:
    """Pass over further signals to end; by a handler, because children inherit what is ignored."""
    for number in END_SIGNALS:
        signal.signal(number, _pass_over)


def _pass_over(signum: int, frame: object) -> None:
    pass


@contextlib.contextmanager
def hold_back() -> Iterator[Callable[[], bool]]:
    """Within this block a first Ctrl-C, SIGTERM or SIGUSR1 is only noted, and raised at its end.

    A second Ctrl-C raises at once. Yields a function that says whether one was noted.
    """
    if threading.current_thread() is not threading.main_thread():  # signals reach only the main thread
        yield lambda: False
        return
    noted: list[BaseException] = []

    def note(signum: int, frame: object) -> None:
        error = KeyboardInterrupt() if signum == signal.SIGINT else Terminated()
        if noted and signum == signal.SIGINT:
            raise error
        if not noted:
            noted.append(error)
            at_once = "once more" if signum == signal.SIGINT else "Ctrl-C"
            print(f"stopping after this step; {at_once} stops at once", file=sys.stderr, flush=True)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, *END_SIGNALS)}
    try:
        yield lambda: bool(noted)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if noted and isinstance(noted[0], Terminated):
            _hear_no_more()
        if noted:
            raise noted[0]

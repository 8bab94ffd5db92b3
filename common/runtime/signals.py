"""Ctrl-C and SIGTERM, held back until the state is consistent and saved."""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator


class Terminated(BaseException):
    """SIGTERM arrived: like KeyboardInterrupt, it passes every ``except Exception`` on its way out."""


def raise_on_sigterm() -> None:
    """Let SIGTERM unwind the stack like Ctrl-C does, so that what was reached is saved and files are closed."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _raise_terminated)


def _raise_terminated(signum: int, frame: object) -> None:
    raise Terminated


@contextlib.contextmanager
def hold_back() -> Iterator[Callable[[], bool]]:
    """Within this block a first Ctrl-C or SIGTERM is only noted, and raised at its end; a second one raises at once.

    Yields a function that says whether one was noted.
    """
    if threading.current_thread() is not threading.main_thread():  # signals reach only the main thread
        yield lambda: False
        return
    noted: list[BaseException] = []

    def note(signum: int, frame: object) -> None:
        error = KeyboardInterrupt() if signum == signal.SIGINT else Terminated()
        if noted:
            raise error
        noted.append(error)
        print("stopping after this step; once more stops at once", file=sys.stderr, flush=True)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(noted)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if noted:
            raise noted[0]

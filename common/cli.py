"""The entry point of every script: parse the command line, run, and return the exit code."""

import contextlib
import os
import re
import sys
from collections.abc import Callable
from typing import Any

from common.runtime import signals
from common.runtime.errors import UserError


def run(main: Callable[[Any], None], config_type: type, argv: list[str] | None = None) -> int:
    """Parse the command line into ``config_type``, call ``main`` with it and return the exit code.

    0: what was asked for is on disk. 2: the user's mistake or a missing thing, said in one line on standard error.
    130: Ctrl-C, 143: SIGTERM; what was reached is in the checkpoint. tyro itself exits with 2 on a wrong flag.
    """
    import tyro

    signals.raise_on_sigterm()
    _print_any_letter()
    try:
        main(tyro.cli(config_type, description=main.__globals__["__doc__"], args=argv))
        sys.stdout.flush()
    except UserError as error:
        return _fail(str(error))
    except MemoryError as error:
        return _fail(f"out of memory ({error}): try a smaller --batch-size, --image-size or --train-limit")
    except BrokenPipeError:  # the reader of a pipe, such as ``head``, has gone
        return _fail("standard output was closed before all was printed")
    except OSError as error:
        where = f" {error.filename!r}" if error.filename else ""
        return _fail(f"{error.strerror or error}{where}")
    except KeyboardInterrupt:
        return _stopped("interrupted", 130)
    except signals.Terminated:
        return _stopped("terminated", 143)
    return 0


def with_flags(message: str) -> str:
    """Return a message of the library with each `setting` spelt as its flag: `train_limit` becomes --train-limit."""
    return re.sub(r"`([a-z][a-z_]*)`", lambda setting: "--" + setting[1].replace("_", "-"), message)


def _print_any_letter() -> None:
    """Let a letter that the terminal's encoding lacks be escaped, not end the run."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _fail(message: str) -> int:
    with contextlib.suppress(OSError):  # a log on a full disk: the exit code says it
        print("error: " + " ".join(with_flags(message).split()), file=sys.stderr, flush=True)
    try:
        sys.stdout.flush()
    except OSError:  # Python would try again as it ends, and exit with 120
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 2


def _stopped(word: str, code: int) -> int:
    print(f"{word}; a training goes on with the same command", file=sys.stderr)
    return code

"""The entry point of every script: parse the command line, run, and return the exit code."""

import contextlib
import dataclasses
import inspect
import os
import re
import sys
from collections.abc import Callable
from typing import Any

from common.runtime import signals
from common.runtime.errors import AlreadyFinished, UserError

SPIN_COUNT = "2000"  # libgomp's own is 300,000; fewer cost time at rest, more of them beside another process


def run(main: Callable[[Any], None], config_type: type, argv: list[str] | None = None) -> int:
    """Parse the command line into ``config_type``, call ``main`` with it and return the exit code.

    0: what was asked for is on disk. 1: runs of a grid failed. 2: the user's mistake or a missing thing, said in one
    line on standard error (by tyro, where a flag does not parse). 130: Ctrl-C, 143: SIGTERM; what was reached is in the
    checkpoint.
    """
    signals.raise_on_sigterm()
    _print_any_letter()
    _share_the_cores()
    try:
        try:
            main(parse(config_type, argv, description=main.__globals__["__doc__"]))
        except AlreadyFinished as finished:
            print(with_flags(str(finished)))
        sys.stdout.flush()
    except UserError as error:
        return _fail(str(error))
    except MemoryError as error:
        return _fail(
            f"out of memory ({error}): free some, or train with a smaller --batch-size, --image-size or --train-limit"
        )
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


def parse(config_type: type, argv: list[str] | None = None, *, description: str | None = None) -> Any:
    """Return the configuration that the command line gives; ``--help`` shows inherited settings in groups of their own.

    Where there are such groups every field has a plain default.

    Raises:
        UserError: a value that parses and is wrong; for one that does not parse tyro prints its own message.
        SystemExit: with code 2, after that message.
    """
    import tyro

    groups = {base.__name__.removesuffix("Config").lower(): base for base in config_type.__mro__[1:] if _fields(base)}
    if not groups:
        return tyro.cli(config_type, description=description, args=argv)
    groups = {"hyper_parameters": _own_part(config_type), **groups}
    parts = [(name, kind, dataclasses.field(default_factory=kind)) for name, kind in groups.items()]
    grouped = dataclasses.make_dataclass("Grouped", parts)
    parsed = tyro.cli(grouped, description=description, args=argv, config=(tyro.conf.OmitArgPrefixes,))
    return config_type(**{name: value for part in vars(parsed).values() for name, value in vars(part).items()})


def _fields(kind: type) -> list[dataclasses.Field]:
    """Return the fields that a class adds to those of its bases."""
    added = inspect.get_annotations(kind)
    return [each for each in dataclasses.fields(kind) if each.name in added] if dataclasses.is_dataclass(kind) else []


def _own_part(config_type: type) -> type:
    """Return a dataclass of the fields that ``config_type`` adds; tyro finds their help in the source of it."""
    fields = [(each.name, each.type, dataclasses.field(default=each.default)) for each in _fields(config_type)]
    part = dataclasses.make_dataclass(config_type.__name__, fields, kw_only=True)
    for name in ("__module__", "__qualname__", "__doc__"):
        setattr(part, name, getattr(config_type, name))
    return part


def with_flags(message: str) -> str:
    """Return a message of the library with each `setting` spelt as its flag: `train_limit` becomes --train-limit."""
    return re.sub(r"`([a-z][a-z_]*)`", lambda setting: "--" + setting[1].replace("_", "-"), message)


def _share_the_cores() -> None:
    """Let PyTorch's threads, and those of children, wait for each other in a short spin and then asleep.

    libgomp (https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html) spins for long, which on an idle machine
    gains nothing and beside another busy process makes a training step many times slower. It reads the variable when
    PyTorch is imported, which is later than this; a user's own setting wins.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)


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

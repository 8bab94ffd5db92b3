"""The one exception that a user is meant to read."""

import difflib
from collections.abc import Sequence


class UserError(Exception):
    """Something the user can put right: the message says what is wrong, where, and what to do.

    The scripts print it as one line and exit with code 2 (see ``common.cli.run``); anything else that escapes is a
    defect of this repository and keeps its traceback. Names taken from the user's files belong in it by ``repr``.
    """


class AlreadyFinished(Exception):
    """What was asked for is on disk already: the message says where, and the scripts print it and exit with code 0."""


def shown(name: str) -> str:
    """Return a name from the user's files as it may be printed: a line break or an escape in it is written out."""
    return name if name.isprintable() else repr(name)


def suggestion(name: str, known: Sequence[str]) -> str:
    """Return " (did you mean 'x'?)" for the closest of the ``known`` names, or an empty string."""
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""

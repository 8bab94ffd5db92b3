"""The one exception that a user is meant to read."""


class UserError(Exception):
    """Something the user can put right: the message says what is wrong, where, and what to do.

    The scripts print it as one line and exit with code 2 (see ``common.cli.run``); anything else that escapes is a
    defect of this repository and keeps its traceback. Names taken from the user's files belong in it by ``repr``.
    """

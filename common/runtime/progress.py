"""One progress bar for everything that takes longer than two seconds, and durations in words."""

import sys
from collections.abc import Iterable

from tqdm import tqdm


class _Lines(tqdm):
    """tqdm for logs: a plain line every ten seconds instead of a bar that redraws itself."""

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Print the bar's text as a line of its own."""
        print(self if msg is None else msg, file=self.fp, flush=True)
        return True

    def close(self) -> None:
        """End quietly."""
        self.disable = True  # tqdm would print the erased bar as one more line
        super().close()


def progress(items: Iterable | None = None, *, desc: str, total: int | None = None, unit: str = "it") -> tqdm:
    """Wrap ``items`` (or count by hand with ``update``) in a bar with an ETA on standard error.

    Nothing appears in the first two seconds; where standard error is not a terminal, a plain line every ten.
    """
    terminal = sys.stderr.isatty()
    return (tqdm if terminal else _Lines)(
        items,
        desc=desc,
        total=total,
        unit=unit,
        delay=2,
        leave=False,
        mininterval=0.2 if terminal else 10,
        miniters=None if terminal else 1,
        dynamic_ncols=terminal,
        file=sys.stderr,
    )


def duration(seconds: float) -> str:
    """Return a rough duration in words: "40 s", "12 min" or "3.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6_000 else f"{seconds / 3600:.1f} h"

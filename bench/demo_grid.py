"""``reproduce.py`` as it is, or with ``--anew`` as its first word with each run a process that imports everything."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import reproduce
from common import cli
from common.grid import scheduler

if __name__ == "__main__":
    words = sys.argv[1:]
    if words[:1] == ["--anew"]:
        scheduler.fork_context = lambda: None
        words = words[1:]
    sys.exit(cli.run(reproduce.main, reproduce.Config, words))

"""Where named data sets are downloaded from: torchvision's servers, and the Hugging Face Hub."""

import logging
import socket
from dataclasses import dataclass
from pathlib import Path

from common.data.parquet import require_pyarrow


@dataclass(frozen=True)
class HubCopy:
    """A data set on the Hugging Face Hub: the ``repository`` at one ``revision``, a commit of 40 digits."""

    repository: str
    revision: str

    @property
    def url(self) -> str:
        """Its page on the Hub."""
        return f"https://huggingface.co/datasets/{self.repository}"

    @property
    def command(self) -> str:
        """The shell command that downloads it, up to the folder it goes to."""
        return f"hf download {self.repository} --repo-type dataset --revision {self.revision} --local-dir"


def from_hub(copy: HubCopy, folder: Path) -> None:
    """Download the parquet files of ``copy`` into ``folder``; those that are there already are kept.

    Where the Hub cannot be reached the errors of huggingface_hub are passed on, but it may also return while files are
    missing. Without pyarrow, which is needed to read them, nothing is downloaded (UserError).
    """
    from huggingface_hub import snapshot_download

    require_pyarrow()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries are told once, by the caller
    print(f"downloading {copy.url} to {folder}", flush=True)
    options = {"repo_type": "dataset", "revision": copy.revision, "allow_patterns": "*.parquet"}
    snapshot_download(copy.repository, local_dir=folder, **options)


def by_torchvision(kind: str, data_dir: Path) -> None:
    """Let torchvision's class ``kind`` download (or unpack an archive that lies in its place); errors are passed on."""
    from torchvision import datasets

    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)  # seconds without a byte; torchvision sets none and would hang for ever
    try:
        getattr(datasets, kind)(str(data_dir), download=True)
    finally:
        socket.setdefaulttimeout(timeout)


def torchvision_url(kind: str) -> str:
    """Return where torchvision's class ``kind`` downloads from."""
    from torchvision import datasets

    theirs = getattr(datasets, kind)
    return theirs.mirrors[0] if hasattr(theirs, "mirrors") else theirs.url

"""How fast a finished run's model answers, ``timing.json`` in its folder: written by ``evaluate.py``, read here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from common.runs.record import Amount, Count
from common.runs.result import Run, encode_record, read_record
from common.runs.schema import Within, as_json, typed
from common.runtime.files import write_atomically

TIMING_FILE = "timing.json"


@dataclass(frozen=True, kw_only=True)
class BatchTiming:
    """The seconds of one batch: the median of so many ``repeats``, and the quartiles around it."""

    images: Annotated[int, Within(1, 2**31)]
    seconds: Annotated[float, Within(1e-9, 1e9)]
    quartiles: list[Amount]
    repeats: Count


@dataclass(frozen=True, kw_only=True)
class Timing:
    """A model's time from normalised images on the device to logits, adapters merged and BatchNorm folded.

    ``result_sha256`` is the record's whose model it is; ``timed_with`` are the folders, relative to the results, of all
    models that took turns in one process.
    """

    result_sha256: str
    latency: BatchTiming
    throughput: BatchTiming
    image_size: Count
    timed_with: list[str]
    environment: dict[str, Any]

    @property
    def latency_seconds(self) -> float:
        """Seconds from one image to its logits."""
        return self.latency.seconds

    @property
    def images_per_second(self) -> float:
        """Images a second in large batches."""
        return self.throughput.images / self.throughput.seconds


def write_timing(run: Run, timing: Timing) -> Path:
    """Write ``timing.json`` beside the run's result, atomically; return its path."""
    path = run.folder / TIMING_FILE
    write_atomically(path, encode_record(as_json(timing)))
    return path


def read_timing(run: Run) -> Timing | None:
    """Return what ``timing.json`` says of the run's model, None where it is missing, damaged, or of another result."""
    try:
        timing = typed(read_record(run.folder / TIMING_FILE), Timing)
    except ValueError:
        return None
    return timing if timing.result_sha256 == run.result.sha256 else None

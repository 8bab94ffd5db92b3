"""What times were measured on: seconds of different machines, threads or precisions do not compare."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

TIMED = {"machine": "Training", "timing_machine": "Latency and throughput"}  # what each column of machines timed


def machine_text(environment: Mapping[str, Any]) -> str:
    """Return a record's machine, such as "CPU (AMD EPYC), 1 thread, bf16, 2 jobs", as far as it is recorded.

    Of a run by hand it is not known what ran beside it.
    """
    device, threads, jobs = (environment.get(name) for name in ("device", "threads", "jobs"))
    on_cpu, name = device == "cpu", environment.get("cpu") if device == "cpu" else device
    parts = [f"{'CPU' if on_cpu else 'GPU'} ({name})" if name else "CPU" if on_cpu else "unknown device"]
    parts += [f"{threads} thread{'' if threads == 1 else 's'}"] if threads else []
    parts += [str(environment["precision"])] if environment.get("precision") else []
    parts += [f"{jobs} job{'' if jobs == 1 else 's'}"] if jobs else []
    return ", ".join(parts)


def machines_of(runs: pd.DataFrame, column: str) -> dict[str, list[str]]:
    """Return each machine that ``column`` of ``Frames.runs`` names, with the labels of the models it timed."""
    known = runs.dropna(subset=column)
    return {machine: list(dict.fromkeys(group["label"])) for machine, group in known.groupby(column, sort=False)}


def machines_note(runs: pd.DataFrame, column: str) -> str:
    """Return a sentence on what the times of ``runs`` were measured on; "" where nothing was timed."""
    if mixed := mixture_note(runs, column):
        return mixed
    return "".join(f"{TIMED[column]} timed on {machine}." for machine in machines_of(runs, column))


def mixture_note(runs: pd.DataFrame, column: str) -> str:
    """Return a sentence on times of ``runs`` that do not compare, "" where one machine measured all alike."""
    machines = machines_of(runs, column)
    if len(machines) > 1:
        each = "; ".join(f"{machine}: {', '.join(labels)}" for machine, labels in machines.items())
        return f"{TIMED[column]} timed on {len(machines)} machines or settings, which do not compare: {each}."
    if column == "timing_machine" and (processes := runs["timed_at"].nunique()) > 1:
        return f"{TIMED[column]} timed in {processes} processes and not in turn: they compare less well."
    return ""

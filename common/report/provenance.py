"""How a model's numbers were obtained: what its seeds share, and what each has of its own, as names and texts."""

from collections.abc import Sequence

from common.runs.record import RunResult
from common.runs.result import Run

VERSIONS = ("python", "torch", "timm", "peft", "numpy", "scikit-learn")
MACHINE = ("cpu", "device", "precision", "platform")


def provenance_of(runs: Sequence[Run]) -> dict:
    """Return {shared: rows of all ``runs``, runs: [{seed (or fold), command, rows}]}; a row is (name, text)."""
    rows = [_rows(run) for run in runs]
    shared = [row for row in rows[0] if all(row in other for other in rows)] if len(runs) > 1 else []
    return {
        "shared": shared,
        "runs": [
            {"seed": run.number, "command": run.result.command, "rows": [row for row in own if row not in shared]}
            for run, own in zip(runs, rows, strict=True)
        ],
    }


def _rows(run: Run) -> list[tuple[str, str]]:
    """Return what a run's record says of where its numbers come from; what it does not say is left out."""
    result, data, environment = run.result, run.result.data, run.result.environment
    rows = [
        ("Test accuracy", f"{run.test.scores['accuracy']:.4f} on {data.num_test:,} images"),
        ("Trained on", f"{data.num_train:,} images, selected on {data.num_val:,} others"),
        (
            "Method",
            ", ".join(f"{name} {value}" for name, value in {"": result.method, **result.method_settings}.items()),
        ),
        ("Kept", _kept(result)),
        ("Data fingerprint", data.fingerprint),
        ("Data read from", data.read_from),
        ("Weights", result.model.weights.source),
        ("Weights' SHA-256", result.model.weights.sha256),
        ("Code", _commit(environment)),
        ("Versions", ", ".join(f"{name} {environment[name]}" for name in VERSIONS if environment.get(name))),
        ("Machine", ", ".join(str(environment[name]) for name in MACHINE if environment.get(name))),
        ("Made", environment["created"]),
        ("Record", f"{run.dataset}/{run.name}/{run.folder.name}/result.json"),
        ("Record's SHA-256", result.sha256),
        *(("Note", note) for note in result.notes),
    ]
    return [row for row in rows if row[1]]


def _kept(result: RunResult) -> str:
    """Say which epoch and which of the learning rates tried gave the weights; nothing where there are no epochs."""
    if not result.history:
        return ""
    rates = [f"{trial['lr']:g}" for trial in result.trials if isinstance(trial.get("lr"), (int, float))]
    epochs = f"epoch {result.best_epoch} of {result.history[-1].epoch}"
    kept = result.history[0].lr  # the history is the winning rate's
    if len(rates) > 1 and kept is not None:
        return f"{epochs}, learning rate {kept:g} of {', '.join(rates)}; best on validation images"
    return f"{epochs}, best on validation images" + (f"; learning rate {rates[0]}" if rates else "")


def _commit(environment: dict) -> str | None:
    """Return the git commit, and whether files differed from it."""
    commit = environment.get("git_commit")
    return f"{commit}, with uncommitted changes" if commit and environment.get("git_dirty") else commit

"""The rooms of ``common/`` and the floors they stand on: who may import whom, and who may load PyTorch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

COMMON = Path(__file__).resolve().parent.parent / "common"
# A room imports from lower floors alone, and from itself.
FLOOR = {
    "runtime": 1,
    "data": 2,
    "runs": 2,
    "config": 2,
    "models": 3,
    "evaluation": 3,
    "cli": 3,
    "training": 4,
    "figures": 4,
    "grid": 5,
    "report": 5,
}
STRANGERS = {("models", "evaluation"), ("training", "figures"), ("cli", "data"), ("cli", "runs"), ("grid", "report")}
TORCH = ("torch", "torchvision", "timm", "peft")
LOADS_TORCH = (
    *("models/", "training/", "runtime/device.py"),
    *("data/transforms.py", "data/loader.py", "data/augmentation.py"),
)
NEVER_TORCH = ("runs/", "evaluation/", "figures/", "report/", "config.py", "cli.py")
FILES = sorted(COMMON.rglob("*.py"))


def _room(path: Path) -> str:
    return path.relative_to(COMMON).parts[0].removesuffix(".py")


def _imports(tree: ast.AST) -> Iterator[tuple[str, ast.stmt]]:
    """Yield the dotted name of each module that is imported anywhere in ``tree``, and the statement."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((f"{node.module}.{alias.name}", node) for alias in node.names)


def _rooms(source: str) -> set[str]:
    return {name.split(".")[1] for name, _ in _imports(ast.parse(source)) if name.startswith("common.")}


def _wrong(room: str, source: str) -> list[str]:
    """Return the rooms that ``source``, a module of ``room``, imports and must not."""
    others = _rooms(source) - {room, "__init__"}
    return sorted(
        other for other in others if FLOOR[other] >= FLOOR[room] or {(room, other), (other, room)} & STRANGERS
    )


def _torch_at_module_level(tree: ast.Module) -> list[str]:
    inside = {id(node) for scope in ast.walk(tree) if isinstance(scope, ast.FunctionDef) for node in ast.walk(scope)}
    inside |= {id(node) for scope in ast.walk(tree) if _is_for_type_checkers(scope) for node in ast.walk(scope)}
    return [name for name, node in _imports(tree) if name.split(".")[0] in TORCH and id(node) not in inside]


def _is_for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def test_common_holds_its_rooms_and_no_other_module():
    assert {_room(path) for path in FILES} == {*FLOOR, "__init__"}
    assert {path.name for path in COMMON.glob("*.py")} == {"__init__.py", "config.py", "cli.py"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(COMMON)))
def test_imports_go_down_the_floors(path):
    assert _wrong(_room(path), path.read_text()) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(COMMON)))
def test_torch_is_loaded_where_it_is_needed_and_nowhere_else(path):
    name, tree = str(path.relative_to(COMMON)), ast.parse(path.read_text())
    if not name.startswith(LOADS_TORCH):
        assert _torch_at_module_level(tree) == []
    if name.startswith(NEVER_TORCH):
        used = {name.split(".")[0] for name, node in _imports(tree)}
        assert not used & set(TORCH)


def test_no_module_imports_a_script_or_the_entry_point():
    scripts = {path.stem for path in COMMON.parent.glob("*.py")} | {"demo", "bench"}
    for path in FILES:
        used = {name for name, _ in _imports(ast.parse(path.read_text()))}
        assert not {name.split(".")[0] for name in used} & scripts, path
        assert not any(name.startswith("common.cli") for name in used), path


def test_a_module_on_the_wrong_floor_is_found():
    assert _wrong("runtime", "from common.data import images") == ["data"]
    assert _wrong("figures", "def f():\n    from common.report.tables import x") == ["report"]
    assert _wrong("evaluation", "from common.models import backbones") == ["models"]
    assert _torch_at_module_level(ast.parse("def f():\n    import torch\nfrom timm import layers")) == ["timm.layers"]


def test_no_circle_of_modules():
    """Imports of modules by one another, those inside functions included, have no circle."""
    names = {".".join(path.relative_to(COMMON.parent).with_suffix("").parts): path for path in FILES}
    arrows = {
        name: {other for used, _ in _imports(ast.parse(path.read_text())) for other in names if _is_module(used, other)}
        for name, path in names.items()
    }
    done: set[str] = set()
    while free := {name for name, needs in arrows.items() if name not in done and needs - {name} <= done}:
        done |= free
    assert done == set(names), sorted(set(names) - done)


def _is_module(used: str, module: str) -> bool:
    return used == module or used.rpartition(".")[0] == module


def test_what_needs_no_torch_loads_none():
    rooms = ("runs", "evaluation", "figures", "report")
    modules = [".".join(p.relative_to(COMMON.parent).with_suffix("").parts) for p in FILES if _room(p) in rooms]
    code = f"import sys, importlib, common.config, common.cli\nfor name in {modules}: importlib.import_module(name)\n"
    code += f"print(sorted(set({TORCH}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=COMMON.parent, check=True)
    assert done.stdout == "[]\n"

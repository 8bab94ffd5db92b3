"""JSON records against the annotations of dataclasses: what does not fit, and the records as typed values.

Annotations are ``str``, ``bool``, numbers with bounds (``Annotated[float, Within(0, 1)]``), ``Literal``, ``list[...]``,
``dict[str, ...]``, ``... | None`` and other such dataclasses. A field with a default may be missing.
"""

import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

MAX_DEPTH = 32  # a record has 5; what is nested a thousand deep ends Python's recursion
REST = {"json": None}  # metadata of a dict that takes all fields of its record that have no name of their own


class Within(NamedTuple):
    """The bounds of a number, both included."""

    low: float
    high: float


def problem_with(record: object, kind: type) -> str | None:
    """Say which field of a JSON ``record`` is missing or does not fit the dataclass ``kind``, or return None."""
    if _depth_exceeds(record, MAX_DEPTH):
        return f"it is nested more than {MAX_DEPTH} deep"
    return mismatch(record, kind)


def typed(value: Any, kind: Any) -> Any:
    """Return JSON's ``value``, which ``problem_with`` passed, as an instance of the annotation ``kind``."""
    kind = _without_bounds(kind)
    if value is None:
        return None
    kind = next((each for each in get_args(kind) if each is not type(None)), kind) if _is_union(kind) else kind
    kind = _without_bounds(kind)
    if is_dataclass(kind):
        given = {f.name: typed(*pair) for f, *pair in _paired(value, kind) if pair[0] is not MISSING}
        return kind(**given)
    if get_origin(kind) is list:
        return [typed(item, get_args(kind)[0]) for item in value]
    if get_origin(kind) is dict:
        return {key: typed(item, get_args(kind)[1]) for key, item in value.items()}
    return value


def as_json(value: Any) -> Any:
    """Return a record's dataclasses as the dicts of ``result.json``."""
    if is_dataclass(value):
        record: dict[str, Any] = {}
        for f in fields(value):
            inner = as_json(getattr(value, f.name))
            record |= inner if f.metadata == REST else {_json_name(f): inner}
        return record
    if isinstance(value, Mapping):
        return {key: as_json(item) for key, item in value.items()}
    return [as_json(item) for item in value] if isinstance(value, (list, tuple)) else value


def _depth_exceeds(value: object, depth: int) -> bool:
    if not isinstance(value, (dict, list)):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return depth == 0 or any(_depth_exceeds(item, depth - 1) for item in inner)


def _json_name(f: Field) -> str:
    return f.metadata.get("json", f.name)


def _paired(record: dict, kind: type) -> list[tuple[Field, Any, Any]]:
    """Return each field of the dataclass ``kind`` with its JSON value (``MISSING`` if there is none) and annotation."""
    hints = get_type_hints(kind, include_extras=True)
    named = {_json_name(f) for f in fields(kind) if f.metadata != REST}
    rest = {key: value for key, value in record.items() if key not in named}
    return [
        (f, rest if f.metadata == REST else record.get(_json_name(f), MISSING), hints[f.name]) for f in fields(kind)
    ]


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType)


def _without_bounds(kind: Any) -> Any:
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def mismatch(value: object, kind: Any, where: str = "") -> str | None:
    """Say where JSON's ``value`` differs from the annotation ``kind``, or return None."""
    name = where.removeprefix(".") or "the file"
    if _is_union(kind):  # of None and one other
        other = next(each for each in get_args(kind) if each is not type(None))
        return None if value is None else mismatch(value, other, where)
    if get_origin(kind) is Annotated:
        number, bounds = get_args(kind)
        return _number_problem(value, name, whole=number is int, bounds=bounds)
    if get_origin(kind) is Literal:
        return None if value in get_args(kind) else f"{name} is {value!r}"
    if kind is Any:
        return None
    container = dict if is_dataclass(kind) else get_origin(kind) or kind
    if not isinstance(value, container):
        return f"{name} is {type(value).__name__}, which is not what this benchmark writes"
    return next(filter(None, _inner_problems(value, kind, where)), None)


def _inner_problems(value: Any, kind: Any, where: str) -> Iterator[str | None]:
    """Yield what is wrong with each part of a record, a list or a dict."""
    if is_dataclass(kind):
        for f, inner, annotation in _paired(value, kind):
            path = where if f.metadata == REST else f"{where}.{_json_name(f)}"
            if inner is not MISSING:
                yield mismatch(inner, annotation, path)
            elif f.default is MISSING and f.default_factory is MISSING:
                yield f"{path.removeprefix('.')} is missing"
    elif get_origin(kind) is list:
        yield from (mismatch(item, get_args(kind)[0], f"{where}[{index}]") for index, item in enumerate(value))
    elif get_origin(kind) is dict:
        yield from (mismatch(item, get_args(kind)[1], f"{where}.{key}") for key, item in value.items())


def _number_problem(value: object, name: str, *, whole: bool, bounds: Within) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        return f"{name} should be {'a whole' if whole else 'a'} number"
    return None if bounds.low <= value <= bounds.high else f"{name} should lie in {bounds.low}..{bounds.high}"

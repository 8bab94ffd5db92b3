"""JSON records as instances of dataclasses, whose annotations say what is accepted.

Annotations are ``str``, ``bool``, numbers with bounds (``Annotated[float, Within(0, 1)]``), ``Literal``, ``list[...]``,
``dict[str, ...]``, ``... | None``, ``Any`` and other such dataclasses. A field with a default may be missing.
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


def typed(value: Any, kind: Any, where: str = "") -> Any:
    """Return JSON's ``value``, the field ``where`` of its file, as an instance of the annotation ``kind``.

    Raises:
        ValueError: it does not fit; the message names the field.
    """
    name, origin, arguments = where.removeprefix(".") or "the file", get_origin(kind), get_args(kind)
    if not where and _depth_exceeds(value, MAX_DEPTH):
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):  # of None and one other
        return None if value is None else typed(value, next(a for a in arguments if a is not types.NoneType), where)
    if origin is Annotated:
        return _number(value, name, *arguments)
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{name} is {value!r}")
        return value
    if not isinstance(value, dict if is_dataclass(kind) else origin or kind):
        raise ValueError(f"{name} is {type(value).__name__}, which is not what this benchmark writes")
    if is_dataclass(kind):
        return kind(**dict(_fields(value, kind, where)))
    if origin is list:
        return [typed(item, arguments[0], f"{where}[{index}]") for index, item in enumerate(value)]
    return {key: typed(item, arguments[1], f"{where}.{key}") for key, item in value.items()} if origin else value


def as_json(value: Any) -> Any:
    """Return a record's dataclasses as the dicts of ``result.json``."""
    if is_dataclass(value):
        record: dict[str, Any] = {}
        for each in fields(value):
            inner = as_json(getattr(value, each.name))
            record |= inner if each.metadata == REST else {_json_name(each): inner}
        return record
    if isinstance(value, Mapping):
        return {key: as_json(item) for key, item in value.items()}
    return [as_json(item) for item in value] if isinstance(value, (list, tuple)) else value


def _fields(record: dict, kind: type, where: str) -> Iterator[tuple[str, Any]]:
    """Yield the name and the typed value of each field of the dataclass ``kind`` that a JSON ``record`` gives."""
    hints = get_type_hints(kind, include_extras=True)
    named = {_json_name(each) for each in fields(kind)}
    for each in fields(kind):
        path = f"{where}.{_json_name(each)}"
        if each.metadata == REST:
            rest = {key: value for key, value in record.items() if key not in named}
            yield each.name, typed(rest, hints[each.name], where)
        elif _json_name(each) in record:
            yield each.name, typed(record[_json_name(each)], hints[each.name], path)
        elif each.default is MISSING and each.default_factory is MISSING:
            raise ValueError(f"{path.removeprefix('.')} is missing")


def _json_name(each: Field) -> str:
    return each.metadata.get("json", each.name)


def _number(value: object, name: str, kind: type, bounds: Within) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float)):
        raise ValueError(f"{name} should be {'a whole' if kind is int else 'a'} number")
    if not bounds.low <= value <= bounds.high:
        raise ValueError(f"{name} should lie in {bounds.low}..{bounds.high}")
    return value


def _depth_exceeds(value: object, depth: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return bool(inner) and (depth == 0 or any(_depth_exceeds(item, depth - 1) for item in inner))

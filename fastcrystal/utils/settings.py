"""Settings: frozen dataclasses, nested, that go into JSON and TOML and are changed by `part.field=value`.

Values are checked against the annotations of the fields (numbers, strings, bool, Literal, tuples, dicts, None, other
dataclasses). A field that a file does not name keeps its default.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import inspect
import sys
import textwrap
import types
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")
#: key that names the class of a part which may be one of several
KIND = "kind"
_WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
_SWITCH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


class Text(str):
    """A value from the command line, to be read as the type of its field."""


class Settings:
    """Base of dataclasses of settings."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, the inverse of `from_dict`."""
        return {f.name: _plain(getattr(self, f.name), get_type_hints(type(self))[f.name]) for f in fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_dict(cls: type[T], values: Mapping[str, Any]) -> T:
        """The settings of plain values, of nested dicts for nested parts; fields not given keep their defaults.

        Raises
        ------
        ValueError
            If a key is no field, a value has another type, or the class refuses it; one line that names the nearest
            valid name.
        """
        return _build(cls, values, "", cls)


def updated(config: T, values: Mapping[str, Any]) -> T:
    """A copy of settings with some fields changed, nested dicts for nested parts.

    Parameters
    ----------
    config : dataclass
    values : mapping of str to object
        As in a TOML file. `Text` is read as the type of its field.

    Raises
    ------
    ValueError
        As `Settings.from_dict`.
    """
    return _updated(config, values, "", type(config))


def apply_overrides(config: T, overrides: Sequence[str]) -> T:
    """A copy of settings with "part.field=value" applied, the last one last.

    Raises
    ------
    ValueError
        As `Settings.from_dict`, or for text that is not "name=value".
    """
    return updated(config, parse_overrides(overrides))


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """["optim.lr=0.1"] -> {"optim": {"lr": Text("0.1")}}.

    Raises
    ------
    ValueError
        For text that is not "name=value".
    """
    out: dict[str, Any] = {}
    for text in overrides:
        name, equals, value = text.partition("=")
        parts = name.strip().split(".")
        if not equals or not all(parts):
            raise ValueError(f"settings are given as part.field=value, got {text!r}")
        out = merge(out, nested(name.strip(), Text(value.strip())))
    return out


def nested(name: str, value: Any) -> dict[str, Any]:
    """("optim.lr", 0.1) -> {"optim": {"lr": 0.1}}."""
    for part in reversed(name.split(".")):
        value = {part: value}
    return dict(value)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts as one; where both have a value, that of `over`."""
    out = dict(base)
    for name, value in over.items():
        both = isinstance(value, Mapping) and isinstance(out.get(name), Mapping)
        out[name] = merge(out[name], value) if both else value
    return out


def load_toml(path: Path) -> dict[str, Any]:
    """The values of a TOML file.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file, or it is no TOML.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no settings file at {path}")
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no TOML file: {error}") from None
    return values


def describe(config: Any, hidden: Collection[str] = (), prefix: str = "") -> str:
    """All settings but `hidden` ones, one a line: name=value, and the first sentence of the field's docstring."""
    lines = []
    docs = _field_docs(type(config))
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value):
            lines.append(describe(value, hidden, f"{prefix}{f.name}."))
        elif f"{prefix}{f.name}" not in hidden:
            shown = ",".join(str(v) for v in value) if isinstance(value, tuple) else value
            lines.append(f"{f'{prefix}{f.name}={shown}':44} {docs.get(f.name, '')}".rstrip())
    return "\n".join(lines)


def check_choices(config: Any) -> None:
    """ValueError for a Literal field with another value: for `__post_init__`, which constructors in Python reach."""
    for name, kind in get_type_hints(type(config)).items():
        if get_origin(kind) is Literal:
            checked_choice(getattr(config, name), get_args(kind), name)


def checked_choice(value: Any, allowed: tuple[Any, ...], name: str) -> Any:
    """The value, which must be among those allowed; ValueError names the nearest one."""
    by_text = {str(choice): choice for choice in allowed}
    if isinstance(value, Text) and value in by_text:
        return by_text[value]
    if value in allowed:
        return value
    near = difflib.get_close_matches(str(value), by_text, 1, 0.5)
    hint = f": did you mean {near[0]}?" if near else ""
    raise ValueError(f"{name} must be one of {', '.join(by_text)}, got {value!r}{hint}")


def names(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Full name and value of every field of settings: ("optim.lr", 0.002)."""
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value):
            yield from names(value, f"{prefix}{f.name}.")
        else:
            yield f"{prefix}{f.name}", value


def _updated(config: T, values: Mapping[str, Any], where: str, root: type) -> T:
    hints = get_type_hints(type(config))
    _refuse_unknown(type(config), values, where, root)
    changed = {}
    for name, value in values.items():
        now, full = getattr(config, name), f"{where}{name}"
        if (
            is_dataclass(now)
            and isinstance(value, Mapping)
            and value.get(KIND, type(now).__name__) == type(now).__name__
        ):
            changed[name] = _updated(now, {k: v for k, v in value.items() if k != KIND}, f"{full}.", root)
        else:
            merged = merge(now, value) if isinstance(now, Mapping) and isinstance(value, Mapping) else value
            changed[name] = _value(merged, hints[name], full, root)
    return replace(config, **changed)  # type: ignore[type-var]


def _build(cls: type[T], values: Mapping[str, Any], where: str, root: type) -> T:
    hints = get_type_hints(cls)
    _refuse_unknown(cls, values, where, root)
    missing = [
        f.name
        for f in fields(cls)  # type: ignore[arg-type]
        if f.init and f.name not in values and f.default is MISSING and f.default_factory is MISSING
    ]
    if missing:
        raise ValueError(f"{where[:-1] or cls.__name__} lacks {', '.join(missing)}")
    return cls(**{name: _value(value, hints[name], f"{where}{name}", root) for name, value in values.items()})


def _refuse_unknown(cls: type, values: Mapping[str, Any], where: str, root: type) -> None:
    """ValueError for the first name that is no field, with the nearest one of this part or, by its end, of another."""
    own = [f.name for f in fields(cls)]
    for name in values:
        if name in own:
            continue
        full = f"{where}{name}"
        same_end = [other for other in _full_names(root) if other.rpartition(".")[2] == name and other != full]
        near = same_end or [f"{where}{n}" for n in difflib.get_close_matches(name, own, 1)]
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(own)}"
        raise ValueError(f"{where[:-1] or cls.__name__} has no field {name}: {hint}")


def _full_names(cls: type, prefix: str = "") -> Iterator[str]:
    """Full names of the fields of a class, those of every class that a part may be."""
    for name, kind in get_type_hints(cls).items():
        parts = [k for k in (kind, *get_args(kind)) if isinstance(k, type) and is_dataclass(k)]
        if parts:
            yield from (full for part in parts for full in _full_names(part, f"{prefix}{name}."))
        else:
            yield f"{prefix}{name}"


def _value(value: Any, kind: Any, where: str, root: type) -> Any:
    """The value as its type; ValueError names the value and the type wanted."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any or kind is object:
        return str(value) if isinstance(value, Text) else value
    if origin in (Union, types.UnionType):
        return _one_of(value, args, where, root)
    if is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, Mapping):
            raise ValueError(
                f"{where} is a group of settings, {where}.{fields(kind)[0].name} and others, got {value!r}"
            )
        return _build(kind, {k: v for k, v in value.items() if k != KIND}, f"{where}.", root)
    if origin is Literal:
        return checked_choice(value, args, where)
    if origin is tuple:
        return _tuple(value, args, where, root)
    if origin is dict or kind is dict:
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} must be a table of values: {where}.NAME=..., got {value!r}")
        return {k: _value(v, args[1] if args else Any, f"{where}.{k}", root) for k, v in value.items()}
    if kind is Path and isinstance(value, (str, Path)):
        return Path(value)
    return _plain_type(value, kind, where)


def _plain_type(value: Any, kind: Any, where: str) -> Any:
    if isinstance(value, Text):
        try:
            return _SWITCH[value.lower()] if kind is bool else kind(value)
        except (ValueError, KeyError):
            pass
    elif isinstance(value, kind) and not (kind is not bool and isinstance(value, bool)):
        return value
    elif kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    raise ValueError(f"{where} must be {_word(kind)}, got {value!r}")


def _tuple(value: Any, args: tuple[Any, ...], where: str, root: type) -> tuple[Any, ...]:
    if isinstance(value, Text):
        value = [Text(part.strip()) for part in value.strip("()[]").split(",") if part.strip()]
    repeated = len(args) == 2 and args[1] is Ellipsis
    if isinstance(value, str) or not isinstance(value, Sequence) or not (repeated or len(value) == len(args)):
        count = "" if repeated else f"{len(args)} "
        raise ValueError(f"{where} must be {count}values, each {_word(args[0])}, got {value!r}")
    return tuple(_value(v, args[0] if repeated else args[i], where, root) for i, v in enumerate(value))


def _one_of(value: Any, kinds: tuple[Any, ...], where: str, root: type) -> Any:
    """A value of a union: None, one of several dataclasses by its "kind", or the one type that is left."""
    if types.NoneType in kinds and (value is None or (isinstance(value, Text) and value.lower() == "none")):
        return None
    kinds = tuple(k for k in kinds if k is not types.NoneType)
    if len(kinds) == 1:
        return _value(value, kinds[0], where, root)
    classes = {k.__name__: k for k in kinds if isinstance(k, type) and is_dataclass(k)}
    if classes and not isinstance(value, Mapping):
        return _value(value, kinds[0], where, root)
    if classes:
        if KIND not in value:
            raise ValueError(f"{where} lacks {KIND}: one of {', '.join(classes)}")
        return _value(value, classes[checked_choice(value[KIND], tuple(classes), f"{where}.{KIND}")], where, root)
    for kind in kinds:
        with contextlib.suppress(ValueError):
            return _value(value, kind, where, root)
    raise ValueError(f"{where} must be {' or '.join(_word(k) for k in kinds)}, got {value!r}")


def _word(kind: Any) -> str:
    return _WORDS.get(kind) or str(getattr(kind, "__name__", kind))


def _plain(value: Any, kind: Any = None) -> Any:
    """A value for JSON; a part that may be one of several classes says which."""
    if is_dataclass(value) and not isinstance(value, type):
        hints = get_type_hints(type(value))
        own = (
            value.to_dict()
            if isinstance(value, Settings)
            else {f.name: _plain(getattr(value, f.name), hints[f.name]) for f in fields(value)}
        )
        several = sum(is_dataclass(k) for k in get_args(kind)) > 1
        return {KIND: type(value).__name__, **own} if several else own
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def _field_docs(cls: type) -> dict[str, str]:
    """First sentence of the docstring under each field, those of inherited fields too."""
    out = {}
    for base in filter(is_dataclass, reversed(cls.__mro__)):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body  # type: ignore[attr-defined]
        for field, doc in pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant):
                text = " ".join(str(doc.value.value).split())
                out[field.target.id] = text.split(". ")[0]  # type: ignore[union-attr]
    return out

"""Settings that go into JSON and come back: the one place that says how."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any, TypeVar

T = TypeVar("T", bound="Jsonable")


class Jsonable:
    """Base of the settings dataclasses (numbers, strings and tuples of them)."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values: dict[str, Any] = asdict(self)  # type: ignore[call-overload]
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @classmethod
    def from_dict(cls: type[T], values: dict[str, Any]) -> T:
        """The inverse of `to_dict`; fields not given keep their defaults.

        Raises
        ------
        ValueError
            If a key is not a field, or a value is refused by the class.
        """
        unknown = sorted(set(values) - {f.name for f in fields(cls)})  # type: ignore[arg-type]
        if unknown:
            raise ValueError(f"{cls.__name__} has no field {', '.join(unknown)}")
        return cls(**values)

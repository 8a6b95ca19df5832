"""The numbers of the status file and of the metrics, described where they are defined.

A dataclass marks each of its numbers as a `counter` or `gauge`; `readings` finds them in a tree of
such values. The status file shows the tree and the metrics are its readings, so they cannot differ.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge"]


@dataclass(frozen=True, slots=True)
class Reading:
    """One number; `name` is its path in the tree, joined by underscores."""

    name: str
    kind: Kind
    about: str
    value: float


def counter(about: str) -> Mapping[str, str]:
    """Return the metadata of a dataclass field whose number only grows."""
    return {"kind": "counter", "about": about}


def gauge(about: str) -> Mapping[str, str]:
    """Return the metadata of a field whose number goes up and down, or is None."""
    return {"kind": "gauge", "about": about}


def readings(tree: object, prefix: str = "") -> Iterator[Reading]:
    """Yield every number in a tree of dataclasses, in the order of the fields."""
    for one in dataclasses.fields(tree):  # type: ignore[arg-type]
        value, name = getattr(tree, one.name), f"{prefix}{one.name}"
        if dataclasses.is_dataclass(value):
            yield from readings(value, f"{name}_")
        elif one.metadata and value is not None:
            yield Reading(name, one.metadata["kind"], one.metadata["about"], float(value))

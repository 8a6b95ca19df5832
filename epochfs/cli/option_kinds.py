"""Kinds of options, and the one for the cache's directory: for commands that reach no registry too.

Imports nothing that speaks HTTP, which takes longer than all else that such a command does.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import platformdirs
from click.shell_completion import CompletionItem

from epochfs.config import parse_seconds, parse_size
from epochfs.errors import EpochfsError

_Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class Value(click.ParamType):  # type: ignore[type-arg]
    """What `parse` reads, shown as `name`; its EpochfsErrors become errors of the option."""

    def __init__(self, name: str, parse: Callable[[str], object]) -> None:
        self.name = name
        self._parse = parse

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> object:
        try:
            return self._parse(value)
        except EpochfsError as error:
            self.fail(str(error), param, ctx)


SIZE = Value("SIZE", parse_size)
TIME = Value("TIME", parse_seconds)


def completed_as(
    kind: str,
) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    """Return how a shell completes a path: as any `file`, or as a `dir`."""
    return lambda context, parameter, begun: [CompletionItem(begun, type=kind)]


def file_option(name: str, about: str, envvar: str | None = None) -> _Decorator:
    """Return an option for a path, made absolute: the daemon leaves this directory.

    Links are not resolved: a mounted secret is a link that is replaced when the secret changes.
    """
    return click.option(
        name,
        type=Value("PATH", lambda text: Path(text).absolute()),
        help=about,
        envvar=envvar,
        show_envvar=True,
        shell_complete=completed_as("file"),
    )


def gathered(name: str, options: Sequence[_Decorator], build: Callable[..., object]) -> _Decorator:
    """Return a decorator that adds `options`, and passes what `build` makes of them as `name`."""
    taken = tuple(inspect.signature(build).parameters)

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def gathering(**values: object) -> object:
            value = build(**{option: values.pop(option) for option in taken})
            return command(**{name: value}, **values)

        decorated: Callable[..., Any] = gathering
        for option in reversed(options):
            decorated = option(decorated)
        return decorated

    return decorate


cache_dir_option = gathered(
    "cache_dir",
    [file_option("--cache-dir", "Cache directory.  [default: ~/.cache/epochfs]")],
    lambda cache_dir: cache_dir or platformdirs.user_cache_path("epochfs"),
)
"""Gives a command the directory of the cache, by default the user's own, as `cache_dir`."""

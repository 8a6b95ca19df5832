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

from epochfs.errors import EpochfsError

_Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
_Completion = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def completed_as(kind: str) -> _Completion:
    """Return how a shell completes a path: as any `file`, or as a `dir`."""
    return lambda context, parameter, begun: [CompletionItem(begun, type=kind)]


def value_option(
    *names: str,
    parse: Callable[[Any], object],
    metavar: str,
    about: str,
    default: str | None = None,
    envvar: str | None = None,
    multiple: bool = False,
    shell_complete: _Completion | None = None,
) -> _Decorator:
    """Return a click option that `parse` reads; its EpochfsErrors become errors of that option."""

    def callback(ctx: click.Context, param: click.Parameter, text: object) -> object:
        try:
            return None if text is None else parse(text)
        except EpochfsError as error:
            raise click.BadParameter(str(error), ctx, param) from None

    return click.option(
        *names,
        callback=callback,
        metavar=metavar,
        help=about,
        default=default,
        show_default=True,
        envvar=envvar,
        show_envvar=True,
        multiple=multiple,
        shell_complete=shell_complete,
    )


def file_option(name: str, about: str, envvar: str | None = None) -> _Decorator:
    """Return an option for a path, made absolute: the daemon leaves this directory.

    Links are not resolved: a mounted secret is a link that is replaced when the secret changes.
    """
    return value_option(
        name,
        parse=lambda text: Path(text).absolute(),
        metavar="PATH",
        about=about,
        envvar=envvar,
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


def _cache_dir(cache_dir: Path | None) -> Path:
    return cache_dir or platformdirs.user_cache_path("epochfs")


cache_dir_option = gathered(
    "cache_dir",
    [file_option("--cache-dir", "Cache directory.  [default: ~/.cache/epochfs]")],
    _cache_dir,
)
"""Gives a command the directory of the cache, by default the user's own, as `cache_dir`."""

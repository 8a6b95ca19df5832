"""One line on a terminal's stderr that is rewritten while something goes on, and wiped at the end.

Where stderr is no terminal there is no such line.
"""

from __future__ import annotations

import os
import sys

import click

_WIPE = "\r\033[K"
_USUAL_WIDTH = 80


class LiveLine:
    """A context manager: nothing of the line is left after the block."""

    def __init__(self) -> None:
        self._shown = False

    def __enter__(self) -> LiveLine:
        return self

    @property
    def is_live(self) -> bool:
        """Whether anybody can watch it."""
        return sys.stderr.isatty()

    def show(self, text: str) -> None:
        """Write `text` in the place of what was shown, cut to the terminal's width."""
        if self.is_live:
            self._shown = True
            width = os.get_terminal_size(sys.stderr.fileno()).columns or _USUAL_WIDTH
            # The cursor goes back to the left, so that a log line overwrites this one.
            click.echo(f"\r{text[: width - 1]}\033[K\r", nl=False, err=True)

    def say(self, text: str) -> None:
        """Write a line that stays."""
        self.wipe()
        click.echo(f"epochfs: {text}", err=True)

    def __exit__(self, *_: object) -> None:
        self.wipe()

    def wipe(self) -> None:
        """Clear the line, if it was shown, for what is to stay."""
        if self._shown:
            self._shown = False
            click.echo(_WIPE, nl=False, err=True)

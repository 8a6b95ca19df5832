"""The command line: arguments and environment in, exit codes out.

Uses `session` to open a registry and to read the environment, and whatever else a command shows.
Used by the `epochfs` program alone.

A subcommand is imported when it is used, so that `epochfs --version` is immediate.
Exit codes: 0 success, 1 failure, 2 wrong usage, 130 interrupted. An error is one line on stderr.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

import click

from epochfs import __version__
from epochfs.errors import EpochfsError, InvalidName, UsageError

_COMMANDS = {
    "mount": "mount.command",
    "umount": "mountpoint.umount_command",
    "prefetch": "prefetch.command",
    "cache": "cache.command",
    "doctor": "doctor.command",
    "demo": "demo.command",
    "help": "help.command",
    "completion": "help.completion_command",
}
"""The subcommands, and where in this folder each is."""


CALLED_BY_MOUNT_8 = "epochfs.called_by_mount_8"
"""Set in click's `meta` where mount(8) calls us: it passes words that nobody gave."""


class _Commands(click.Group):
    """Imports a subcommand when it is used; takes `URL MOUNTPOINT -o …` as `mount`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name].partition(".")
        command = getattr(import_module(f"epochfs.cli.{module}"), name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in _COMMANDS and _is_mount_helper_call(args):
            ctx.meta[CALLED_BY_MOUNT_8] = True
            args = ["mount", *args]
        return super().resolve_command(ctx, args)


def _is_mount_helper_call(args: Sequence[str]) -> bool:
    """Whether mount(8) calls us as the helper of a file system: `URL MOUNTPOINT [-o WORDS]`."""
    return len(args) >= 2 and ("-o" in args or any(mark in args[0] for mark in ".:/"))


@click.group(
    cls=_Commands,
    no_args_is_help=False,
    # Of every command.
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.version_option(__version__, message="epochfs %(version)s")
def command() -> None:
    """Mount an OCI Distribution registry as a directory."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line, by default that of this process, and return its exit code."""
    _have_standard_streams()
    try:
        code = command.main(arguments, prog_name="epochfs", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.UsageError as error:
        asked = error.ctx.command_path if error.ctx else "epochfs"
        message = error.format_message().rstrip(".")
        return _fail(f"{message} (see '{asked} --help')", 2)
    except (UsageError, InvalidName) as error:
        return _fail(str(error), 2)
    except EpochfsError as error:
        return _fail(str(error), 1)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", 130)


def _have_standard_streams() -> None:
    """Open /dev/null as each of descriptors 0, 1 and 2 that is closed.

    Cron wrappers and init scripts close them (`>&-`). The next files to be opened would take their
    numbers, and libfuse would write to them; and Python has None for their file objects.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
            os.set_inheritable(number, True)
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _fail(message: str, code: int) -> int:
    click.echo(f"epochfs: {' '.join(message.split())}", err=True)
    return code

"""The command line of `scripts/man`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from epochfs import __version__, cli
from epochfs.help import TOPICS, Block, Heading, Paragraph, Table, page, parse
from scripts.manpages.roff import man_page

_OTHERS = ("findmnt(8)", "fusermount3(1)", "mount(8)")


def _leaves(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    """Yield the usage and the help of each command that is no group."""
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from _leaves(below, click.Context(below, context, name))
    else:
        usage = [context.command_path, *command.collect_usage_pieces(context)]
        yield " ".join(usage), " ".join((command.help or "").split())


def _manual() -> Iterator[Block]:
    """Yield epochfs(1): the commands by their own words, then the page about options."""
    commands = tuple(_leaves(cli.command, click.Context(cli.command, info_name="epochfs")))
    yield Heading("SYNOPSIS")
    yield Paragraph("`epochfs` COMMAND [OPTIONS] [ARGUMENTS]")
    yield Heading("Commands")
    yield Table(("", ""), tuple((f"`{usage}`", said) for usage, said in commands))
    listed = True
    for block in parse(page("options")).blocks:
        if isinstance(block, Heading):
            listed = block.text == "Commands"
        if not listed:
            yield block


def main(directory: Path) -> None:
    """Write all pages into a directory, which is made if it is not there."""
    directory.mkdir(parents=True, exist_ok=True)
    names = [f"epochfs-{topic}" for topic in TOPICS]
    about = cli.command.help or ""
    manual = man_page(
        "epochfs", 1, __version__, about, _manual(), [*(f"{one}(7)" for one in names), *_OTHERS]
    )
    (directory / "epochfs.1").write_text(manual)
    for topic, name in zip(TOPICS, names, strict=True):
        parsed = parse(page(topic))
        see = ["epochfs(1)", *(f"{one}(7)" for one in names if one != name)]
        text = man_page(name, 7, __version__, parsed.about, parsed.blocks, see)
        (directory / f"{name}.7").write_text(text)


main(Path(sys.argv[1]))

"""`epochfs help` shows a topic on a terminal; `epochfs completion` completes in a shell."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator

import click
from click.shell_completion import get_completion_class

from epochfs.errors import UsageError, printable
from epochfs.help import TOPICS, Block, Code, Heading, Item, Page, Paragraph, Table, page, parse

_VARIABLE = "_EPOCHFS_COMPLETE"
"""What the script sets to have epochfs print completions: click derives it from our name."""

_MARGIN = "    "
_GAP = "  "
_WIDEST = 100


@click.command("help")
@click.argument(
    "topic",
    metavar="[TOPIC]",
    required=False,
    shell_complete=lambda _, __, begun: [one for one in TOPICS if one.startswith(begun)],
)
def command(topic: str | None) -> None:
    """List the topics of the manual, or show one."""
    if topic is None:
        click.echo("Topics, each shown by 'epochfs help TOPIC':\n")
        for name in TOPICS:
            click.echo(f"  {name:<{max(map(len, TOPICS))}}  {parse(page(name)).about}")
    elif topic in TOPICS:
        width = min(shutil.get_terminal_size().columns, _WIDEST)
        click.echo_via_pager(rendered(parse(page(topic)), width))
    else:
        raise UsageError(f"no such topic: '{printable(topic)}'; the topics are {', '.join(TOPICS)}")


def rendered(page: Page, width: int) -> str:
    """Return a page as text of at most `width` columns; code is never wrapped."""
    lines = [click.style(page.title, bold=True), *_wrapped(page.about, width)]
    previous: Block | None = None
    for block in page.blocks:
        if not (isinstance(block, Item) and isinstance(previous, Item)):
            lines.append("")
        lines += _lines(block, width)
        previous = block
    return "\n".join(lines) + "\n"


def _lines(block: Block, width: int) -> Iterator[str]:
    match block:
        case Heading(text):
            yield click.style(text, bold=True)
        case Paragraph(text):
            yield from _wrapped(text, width)
        case Item(marker, text):
            yield from _wrapped(text, width, f"{marker} ")
        case Code(lines):
            yield from (f"{_MARGIN}{_GAP}{line}".rstrip() for line in lines)
        case Table():
            yield from (f"{_MARGIN}{line}".rstrip() for line in _table(block, width - len(_MARGIN)))


def _wrapped(text: str, width: int, first: str = "") -> list[str]:
    """Return text wrapped behind the margin; `first` begins the first line."""
    return textwrap.wrap(
        text.replace("**", ""),
        width,
        initial_indent=_MARGIN + first,
        subsequent_indent=_MARGIN + " " * len(first),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _table(table: Table, width: int) -> Iterator[str]:
    """Yield a table in columns; one of two columns needs no header.

    If the first of two would leave no room for the second, the second goes below it.
    """
    shown = table.rows if len(table.header) == 2 else (table.header, *table.rows)
    rows = [(row[0].replace("`", ""), *row[1:]) for row in shown]
    natural = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if len(natural) == 2 and natural[0] > width // 3 and natural[1] > width // 2:
        for term, meaning in rows:
            yield from _cell(term, width)
            yield from _wrapped(meaning, width)
        return
    widths = _shared(natural, width - len(_GAP) * (len(natural) - 1))
    if len(natural) > 2:
        rows.insert(1, tuple("-" * room for room in widths))
    for row in rows:
        cells = [_cell(text, room) for text, room in zip(row, widths, strict=True)]
        for number in range(max(map(len, cells))):
            parts = [cell[number] if number < len(cell) else "" for cell in cells]
            yield _GAP.join(f"{part:<{room}}" for part, room in zip(parts, widths, strict=True))


def _cell(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]


def _shared(natural: list[int], width: int) -> list[int]:
    """Divide a width among columns: narrow ones get what they need, wide ones share the rest."""
    widths = list(natural)
    for done, column in enumerate(sorted(range(len(natural)), key=natural.__getitem__)):
        widths[column] = min(natural[column], width // (len(natural) - done))
        width -= widths[column]
    return widths


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion_command(context: click.Context, shell: str) -> None:
    """Print a completion script for a shell.

    In ~/.bashrc: eval "$(epochfs completion bash)". In ~/.zshrc: eval "$(epochfs completion zsh)".
    For fish: epochfs completion fish > ~/.config/fish/completions/epochfs.fish
    """
    script = get_completion_class(shell)
    assert script is not None
    root = context.find_root().command
    click.echo(script(root, {}, "epochfs", _VARIABLE).source(), nl=False)

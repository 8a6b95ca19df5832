"""The pages that `epochfs help` shows and the man pages are made of, and the Markdown they use.

Uses the standard library alone.
Used by `cli`, and by `scripts/man`.

A page is a title (`# …`), one line that says what it is about, and then blocks, each set off by a
blank line: headings (`## …`), paragraphs, lists (`- …` or `1. …`, with indented continuation
lines), code (indented by four), and tables with a header. Within text there are `code` and
**strong**, and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files

TOPICS = (
    "tree",
    "semantics",
    "trust",
    "options",
    "registries",
    "credentials",
    "mirrors",
    "backups",
    "models",
    "cache",
    "python",
    "performance",
    "systemd",
    "kubernetes",
    "troubleshooting",
    "design",
)
"""In the order in which they are listed."""

_CODE_INDENT = "    "
_ITEM = re.compile(r"(?:-|\d+\.) ")
_SPAN = re.compile(r"`(?P<code>[^`]+)`|\*\*(?P<strong>.+?)\*\*")
_CELL = re.compile(r"(?<!\\)\|")


@dataclass(frozen=True, slots=True)
class Heading:
    """The heading of a section."""

    text: str


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Running text, on one line."""

    text: str


@dataclass(frozen=True, slots=True)
class Item:
    """An item of a list; `marker` is `-`, or a number with its dot."""

    marker: str
    text: str


@dataclass(frozen=True, slots=True)
class Code:
    """Lines to be shown as they are."""

    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """A table; every row has as many cells as the header."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


Block = Heading | Paragraph | Item | Code | Table


@dataclass(frozen=True, slots=True)
class Page:
    """A page: its title, one sentence that says what it is about, and its blocks."""

    title: str
    about: str
    blocks: tuple[Block, ...]


def page(topic: str) -> str:
    """Return the text of a topic as it is written."""
    return files(__name__).joinpath(f"{topic}.md").read_text("utf-8")


def parse(text: str) -> Page:
    """Parse a page; raises ValueError if it is not written as described above."""
    title, *chunks = re.split(r"\n(?:[ ]*\n)+", text.strip("\n"))
    about = chunks.pop(0) if chunks else ""
    if not title.startswith("# ") or "\n" in title + about or not about:
        raise ValueError("a page begins with its title and one line that says what it is about")
    return Page(title[2:], about, tuple(_blocks(chunks)))


def spans(text: str) -> Iterator[tuple[str, str]]:
    """Yield the parts of a text, each with its style: `code`, `strong`, or "" for neither."""
    end = 0
    for match in _SPAN.finditer(text):
        if match.start() > end:
            yield "", text[end : match.start()]
        style = match.lastgroup or ""
        yield style, match[style]
        end = match.end()
    if end < len(text):
        yield "", text[end:]


def _blocks(chunks: list[str]) -> list[Block]:
    blocks: list[Block] = []
    for chunk in chunks:
        lines = chunk.splitlines()
        if chunk.startswith(_CODE_INDENT):
            code = tuple(line.removeprefix(_CODE_INDENT) for line in lines)
            if blocks and isinstance(last := blocks[-1], Code):  # split by a blank line
                blocks[-1] = Code((*last.lines, "", *code))
            else:
                blocks.append(Code(code))
        elif chunk.startswith("## "):
            blocks.append(Heading(" ".join(lines)[3:]))
        elif chunk.startswith("|"):
            header, _, *rows = (_cells(line) for line in lines)
            if any(len(row) != len(header) for row in rows):
                raise ValueError(f"a row of another length than its header: {lines[0]}")
            blocks.append(Table(header, tuple(rows)))
        elif _ITEM.match(chunk):
            blocks.extend(_items(lines))
        else:
            blocks.append(Paragraph(" ".join(lines)))
    return blocks


def _items(lines: list[str]) -> Iterator[Item]:
    """Yield the items of a list, each continued by the indented lines after it."""
    text = ""
    for line in lines:
        if _ITEM.match(line) and text:
            yield Item(*text.split(" ", 1))
            text = ""
        text = f"{text} {line.strip()}" if text else line
    yield Item(*text.split(" ", 1))


def _cells(line: str) -> tuple[str, ...]:
    cells = _CELL.split(line.strip())[1:-1]
    return tuple(cell.strip().replace(r"\|", "|") for cell in cells)

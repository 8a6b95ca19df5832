"""A page of `epochfs.help` as man(7) has it.

A library would have to be told of our tables, in which a row of two cells is an option and what it
means, and would be needed wherever epochfs is built.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from epochfs.help import Block, Code, Heading, Item, Paragraph, Table, spans

_FONTS = {"code": "B", "strong": "B"}
_TOPIC = re.compile(r"epochfs help ([a-z]+)\Z")


def man_page(
    name: str, section: int, version: str, about: str, blocks: Iterable[Block], see: Sequence[str]
) -> str:
    """Return a man page; `see` are other pages, as in `epochfs-tree(7)`."""
    lines = [
        "'\\\" t",  # has man(1) call tbl(1)
        f'.TH {name.upper()} {section} "" "epochfs {version}"',
        *(".nh", ".nr HY 0"),  # no hyphenation, which would break names in two; .EE asks the second
        ".ad l",
        ".SH NAME",
        f"{plain(name)} \\- {plain(about[0].lower() + about[1:].rstrip('.'))}",
    ]
    body = list(blocks)
    if not isinstance(body[0], Heading):
        lines.append(".SH DESCRIPTION")
    for block in body:
        lines += _lines(block)
    references = (re.sub(r"(.+)(\(\d\))", r"\\fB\1\\fR\2", one.replace("-", "\\-")) for one in see)
    lines += [".SH SEE ALSO", ", ".join(references)]
    return "\n".join(lines) + "\n"


def plain(text: str) -> str:
    """Return text as roff must have it to show what it is; hyphens are those of options."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


def styled(text: str) -> str:
    """Return text with its code and what is strong in bold, and topics as their man pages."""
    parts = []
    for style, part in spans(text):
        if topic := _TOPIC.match(part) if style == "code" else None:
            parts.append(f"\\fBepochfs\\-{topic[1]}\\fR(7)")
        elif style:
            parts.append(f"\\f{_FONTS[style]}{plain(part.replace('`', ''))}\\fR")
        else:
            parts.append(plain(part))
    return "".join(parts)


def _lines(block: Block) -> Iterator[str]:
    match block:
        case Heading(text):
            yield f'.SH "{plain(text)}"'
        case Paragraph(text):
            yield from (".PP", styled(text))
        case Item(marker, text):
            mark = "\\(bu" if marker == "-" else marker
            yield from (f".IP {mark} {len(marker) + 1}", styled(text))
        case Code(lines):
            yield from (".PP", ".RS 4", ".EX", *map(plain, lines), ".EE", ".RE")
        case Table(header, rows) if len(header) == 2:
            for term, meaning in rows:
                yield from (".TP", styled(term), styled(meaning))
        case Table(header, rows):
            yield from _grid(header, rows)


def _grid(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield a table for tbl(1): its first column as wide as may be, the others as they need."""
    yield from (".PP", ".TS", "tab(@);", " ".join("lb" for _ in header))
    yield " ".join(["lx", *("l" for _ in header[1:])]) + "."
    yield "@".join(map(styled, header))
    for row in rows:
        yield "@".join(f"T{{\n{styled(cell)}\nT}}" if cell else "" for cell in row)
    yield ".TE"

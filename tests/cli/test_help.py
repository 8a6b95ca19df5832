"""`epochfs help`: its topics, how they are shown, and that they say what the program does."""

from __future__ import annotations

import os
import pty
import re
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import click
import pytest
from support import CHECKOUT
from support.commandline import environment, run
from support.mounts import COMMAND
from support.registries import EmbeddedRegistry
from unit.test_floors import FLOORS

from epochfs import help as pages
from epochfs.cli import cache, demo, doctor, main, mount, mountpoint, prefetch
from epochfs.cli import help as helping
from epochfs.cli.help import rendered
from epochfs.demo import samples
from epochfs.help import TOPICS, Code, Heading, Item, Paragraph, Table, page, parse, spans

ROOT = CHECKOUT
README = (ROOT / "README.md").read_text()

each_topic = pytest.mark.parametrize("topic", TOPICS)


def words(text: str) -> list[str]:
    """The words of a text, whatever marks them up."""
    return sorted(re.findall(r"\w+", text))


# --- the command ------------------------------------------------------------------------------


def test_without_a_topic_all_are_listed_with_a_line_each() -> None:
    code, output, errors = run("help")
    assert (code, errors) == (0, "")
    lines = [line.split(maxsplit=1) for line in output.splitlines()[2:]]
    assert lines == [[topic, parse(page(topic)).about] for topic in TOPICS]
    assert max(map(len, output.splitlines())) <= 80


@each_topic
def test_a_topic_is_shown_as_plain_text(topic: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", topic]) == 0
    shown = capsys.readouterr().out
    parsed = parse(page(topic))
    tables = [block for block in parsed.blocks if isinstance(block, Table)]
    headers = [" ".join(table.header) for table in tables if len(table.header) == 2]
    code = {line for block in parsed.blocks if isinstance(block, Code) for line in block.lines}
    assert words(f"{shown}\n{' '.join(headers)}") == words(page(topic))
    assert "\x1b" not in shown
    assert "**" not in shown
    long = [line for line in shown.splitlines() if len(line) > 80]
    assert [line for line in long if line[6:] not in code] == []


def test_an_unknown_topic_is_told_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", "tres"]) == 2
    output, errors = capsys.readouterr()
    told = f"no such topic: 'tres'; the topics are {', '.join(TOPICS)}"
    assert (output, errors) == ("", f"epochfs: {told}\n")


def test_a_terminal_has_its_pager(tmp_path: Path) -> None:
    try:
        ours, theirs = pty.openpty()
    except OSError:
        pytest.skip("no pseudo-terminal to be had")
    paged = tmp_path / "paged"
    variables = environment(PAGER=f"tee {paged}", TERM="xterm", COLUMNS="60")
    command = [*COMMAND, "help", "semantics"]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=variables)
    os.close(theirs)
    with suppress(OSError):  # how a terminal ends
        while os.read(ours, 65536):
            pass
    os.close(ours)
    assert process.wait(10) == 0
    lines = paged.read_text().splitlines()
    assert "Verified" in lines
    assert 50 < max(map(len, lines)) <= 60


# --- how a page is read -----------------------------------------------------------------------

PAGE = r"""# Title

What it is about.

A paragraph
of two lines.

## A `part`

- one `item`
  continued
- another

1. first

    $ code

      | of three

| a | b |
|---|---|
| `x\|y` | **z** |
"""


def test_a_page_is_its_blocks() -> None:
    parsed = parse(PAGE)
    assert (parsed.title, parsed.about) == ("Title", "What it is about.")
    assert parsed.blocks == (
        Paragraph("A paragraph of two lines."),
        Heading("A `part`"),
        Item("-", "one `item` continued"),
        Item("-", "another"),
        Item("1.", "first"),
        Code(("$ code", "", "  | of three")),
        Table(("a", "b"), (("`x|y`", "**z**"),)),
    )


def test_text_is_its_spans() -> None:
    assert list(spans("a `b` **c** d")) == [
        ("", "a "),
        ("code", "b"),
        ("", " "),
        ("strong", "c"),
        ("", " d"),
    ]


def test_a_table_that_does_not_fit_is_wrapped_or_has_its_terms_above() -> None:
    def shown(row: str) -> str:
        page = parse(f"# T\n\nA.\n\n| a | b |\n|---|---|\n{row}\n")
        return rendered(page, 24).partition("A.\n\n")[2]

    assert shown("| `--x` | one two three |") == "    --x  one two three\n"
    assert shown("| `--x` | one two three four |") == "    --x  one two three\n         four\n"
    assert shown("| `--option` | one two three four |") == (
        "    --option\n        one two three\n        four\n"
    )


@pytest.mark.parametrize(
    "text", ["", "Title\n\nAbout.", "# T\n\nTwo\nlines.\n\nx", "# T\n\nA.\n\n|a|b|\n|-|-|\n|c|\n"]
)
def test_what_is_no_page_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"a page begins|a row of another length"):
        parse(text)


# --- what it says -----------------------------------------------------------------------------


def test_every_page_is_a_topic() -> None:
    written = {file.stem for file in Path(pages.__file__).parent.glob("*.md")}
    assert written == set(TOPICS)


@pytest.mark.parametrize("text", [README, *map(page, TOPICS)], ids=["README", *TOPICS])
def test_what_a_page_refers_to_is_there(text: str) -> None:
    assert set(re.findall(r"epochfs help ([a-z]+)", text)) <= set(TOPICS)
    files = re.findall(r"(?<![\w/.-])((?:scripts|tests|epochfs)/[\w./*@-]+\w)", text)
    assert [file for file in files if not list(ROOT.glob(file))] == []


def test_the_design_page_has_every_folder() -> None:
    cells = [
        row[0]
        for block in parse(page("design")).blocks
        if isinstance(block, Table)
        for row in block.rows
    ]
    told = re.findall(r"`(\w+)`", " ".join(cells))
    assert sorted(told) == sorted({*FLOORS} - {"__main__"})


def test_the_client_is_used_as_the_design_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    snippet = "\n".join(parse(page("design")).blocks[-1].lines)
    with EmbeddedRegistry() as registry:
        samples.load(registry)
        exec(snippet.replace("http://127.0.0.1:5000", registry.url), {})
    names, digest = capsys.readouterr().out.rsplit(" ", 1)
    assert names == "['demo/artifact', 'demo/team/app', 'library/hello']"
    assert digest.startswith("sha256:")


# --- options ----------------------------------------------------------------------------------


def stated(*sections: str) -> dict[str, str]:
    """Return the options in sections of the topic, each with the default it states, or ""."""
    found: dict[str, str] = {}
    section = ""
    for block in parse(page("options")).blocks:
        if isinstance(block, Heading):
            section = block.text
        elif isinstance(block, Table) and section in sections:
            for term, meaning in block.rows:
                default = re.search(r"Default: `?([^`]+?)`?(?:, if it exists)?\.$", meaning)
                for name in re.findall(r"`(-[\w-]+)", term):
                    found[name] = default[1] if default else ""
    return found


def offered(command: click.Command) -> dict[str, str]:
    """Return the options of a command, each with its default as `--help` has it, or ""."""
    return dict(_offered(command))


def _offered(command: click.Command) -> Iterator[tuple[str, str]]:
    for option in command.params:
        if isinstance(option, click.Option):
            written = re.search(r"\[default: ([^]]+?)(?:, if it exists)?\]", option.help or "")
            default = option.default if isinstance(option.default, str | int) else None
            known = written[1] if written else str(default or "") if not option.is_flag else ""
            yield from ((name, known) for name in option.opts)


ACCESS, CACHE, MOUNT, UNMOUNT, CARE = (
    "Access",
    "Cache and downloads",
    "The mount",
    "Unmounting",
    "Looking after the cache",
)


def test_the_topic_has_the_options_and_defaults_of_every_command() -> None:
    cache_dir = {"--cache-dir": stated(CACHE)["--cache-dir"]}
    expected = {**stated(ACCESS, CACHE, MOUNT), "--log-file": "none; stderr with -f"}
    assert offered(mount.command) == expected
    assert offered(prefetch.command) == stated(ACCESS, CACHE)
    assert offered(doctor.command) == stated(ACCESS) | cache_dir
    assert offered(cache.command.commands["prune"]) == stated(CARE) | cache_dir
    for name in ("info", "verify", "clear"):
        assert offered(cache.command.commands[name]) == cache_dir
    assert offered(mountpoint.umount_command) == stated(UNMOUNT)
    for command in (demo.command, helping.command):
        assert offered(command) == {}

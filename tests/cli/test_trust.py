"""`epochfs help trust`: each figure has its date, and a command that repeats it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from fnmatch import fnmatchcase

import pytest
from support import CHECKOUT

from epochfs.help import Table, page, parse

TABLES = [block for block in parse(page("trust")).blocks if isinstance(block, Table)]
ROWS = [row for table in TABLES for row in table.rows]
COMMANDS = [shlex.split(again.strip("`")) for again, _ in ROWS]
_TESTS = re.compile(r"([\d,]+) tests\b")


def test_every_table_says_when_it_was_found() -> None:
    sections = re.split(r"^## ", page("trust"), flags=re.MULTILINE)
    dated = [section for section in sections if re.search(r"Run on \d{4}-\d\d-\d\d\b", section)]
    assert dated == [section for section in sections if "\n|---" in section]
    assert len(dated) == 3


def test_every_command_is_a_script_that_says_what_it_does() -> None:
    scripts = {script for script, *_ in COMMANDS}
    assert len(scripts) == 5
    for script in scripts:
        assert os.access(CHECKOUT / script, os.X_OK)
        command = [script, "--help"]
        said = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True)
        assert said.stdout.strip()
        assert said.stderr == ""


@pytest.mark.timeout(300)
def test_there_are_at_least_as_many_tests_as_it_says() -> None:
    files = {
        str(path.relative_to(CHECKOUT))
        for command in COMMANDS
        for word in command
        if word.endswith(".py")
        for path in CHECKOUT.glob(word)
    }
    collect = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*collect, *files], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    found = Counter(re.findall(r"^(tests/\S+?\.py)::", done.stdout, re.MULTILINE))
    claimed = [
        (command[-1], _TESTS.search(about))
        for command, (_, about) in zip(COMMANDS, ROWS, strict=True)
    ]
    counted = [(pattern, said[1]) for pattern, said in claimed if said]
    assert len(counted) == 13
    for pattern, said in counted:
        there = sum(count for file, count in found.items() if fnmatchcase(file, pattern))
        assert there >= int(said.replace(",", "")), pattern

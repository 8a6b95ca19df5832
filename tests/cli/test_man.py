"""The man pages: made of the pages and the commands, and fit for man(1)."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cli.test_help import CACHE, CARE, MOUNT, stated, words
from support import CHECKOUT

from epochfs.help import TOPICS, Table, page, parse

ROOT = CHECKOUT
NAMES = ["epochfs.1", *(f"epochfs-{topic}.7" for topic in TOPICS)]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all pages have been written."""
    directory = tmp_path_factory.mktemp("man") / "made"
    command = [sys.executable, "-m", "scripts.manpages", str(directory)]
    subprocess.run(command, cwd=ROOT, check=True)
    return directory


def shown(file: Path) -> str:
    """A page as a terminal shows it, in which man(1) finds nothing to complain of."""
    if shutil.which("man") is None or shutil.which("tbl") is None:
        pytest.skip("man (man-db) is not installed")
    command = ["man", "--warnings", "--encoding=UTF-8", "--local-file", str(file)]
    variables = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "MANWIDTH": "200"}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return re.sub(".\b", "", done.stdout)


def test_there_is_a_page_for_each_topic_and_one_for_the_commands(pages: Path) -> None:
    assert sorted(file.name for file in pages.iterdir()) == sorted(NAMES)


@pytest.mark.parametrize("topic", TOPICS)
def test_a_page_has_all_that_its_topic_has(topic: str, pages: Path) -> None:
    text = shown(pages / f"epochfs-{topic}.7")
    parsed = parse(page(topic))
    about = f"{parsed.about[0].lower()}{parsed.about[1:].rstrip('.')}"
    assert f"epochfs-{topic} - {about}\n" in text
    referred = re.sub(r"epochfs help (\w+)", r"epochfs-\1(7)", page(topic))
    tables = [block for block in parsed.blocks if isinstance(block, Table)]
    headers = {word for table in tables for word in words(" ".join(table.header))}
    unseen = {parsed.title, *words(parsed.about), *headers}
    assert set(words(referred)) - set(words(text)) <= unseen


def test_the_page_of_the_commands_has_each_with_all_options(pages: Path) -> None:
    text = shown(pages / "epochfs.1")
    assert "epochfs - mount an OCI Distribution registry as a directory\n" in text
    for usage in ("mount [OPTIONS] [SOURCE] MOUNTPOINT", "cache prune [OPTIONS]"):
        assert f"       epochfs {usage}\n" in text
    for option in stated("Access", CACHE, MOUNT, CARE):
        assert re.search(rf"^       (-f, )?{re.escape(option)}\b", text, re.MULTILINE), option
    assert "epochfs-semantics(7)" in text


def test_what_looks_like_a_request_to_roff_is_shown() -> None:
    sys.path.insert(0, str(ROOT))
    try:
        from scripts.manpages.roff import plain, styled
    finally:
        sys.path.remove(str(ROOT))
    assert plain(".TH 'a\\b' --x") == "\\&.TH 'a\\eb' \\-\\-x"
    assert styled("see `epochfs help tree`, `a-b` and **c**") == (
        "see \\fBepochfs\\-tree\\fR(7), \\fBa\\-b\\fR and \\fBc\\fR"
    )

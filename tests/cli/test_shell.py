"""The command line as a shell's user has it: `-h`, lists of commands, completion, Ctrl-C."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from support.commandline import environment, start

from epochfs import cli
from epochfs.cli import main


def commands(command: click.Command, *path: str) -> Iterator[tuple[str, ...]]:
    """Yield the words of each command there is."""
    yield path
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from commands(below, *path, name)


COMMANDS = list(commands(cli.command))


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_h_is_help(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*path, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"Usage: {' '.join(['epochfs', *path])} ")
    assert main([*path, "-h"]) == 0
    assert capsys.readouterr().out == shown


@pytest.mark.parametrize("path", [(), ("cache",)], ids=" ".join)
def test_what_a_command_is_for_is_not_cut(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*path, "-h"]) == 0
    listed = capsys.readouterr().out.partition("Commands:\n")[2]
    assert "..." not in listed
    below = [one for one in COMMANDS if one[:-1] == path and one]
    assert len(listed.splitlines()) == len(below)


# --- completion -------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_of_a_shell_is_a_script_of_it(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert f"_EPOCHFS_COMPLETE={shell}_complete" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)


def test_another_shell_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "csh"]) == 2
    assert "'bash', 'zsh', 'fish'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["um"], ["umount"]),
        (["mount", "--cache-"], ["--cache-dir", "--cache-size"]),
        (["mount", "--verify", ""], ["stream", "full"]),
        (["cache", "v"], ["verify"]),
        (["help", "sem"], ["semantics"]),
        (["completion", "b"], ["bash"]),
    ],
    ids=lambda typed: " ".join(typed),
)
def test_bash_completes(typed: list[str], offered: list[str], tmp_path: Path) -> None:
    assert completed(tmp_path, typed) == offered


@pytest.mark.parametrize("typed", [["umount", "m"], ["mount", "--log-file", "l"]], ids=" ".join)
def test_bash_completes_paths_by_itself(typed: list[str], tmp_path: Path) -> None:
    assert completed(tmp_path, typed) == []


def completed(directory: Path, typed: list[str]) -> list[str]:
    """Return what bash offers for what is typed after `epochfs`."""
    program = directory / "epochfs"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m epochfs "$@"\n')
    program.chmod(0o755)
    variables = environment()
    variables["PATH"] = f"{directory}:{variables['PATH']}"
    script = (
        'compopt() { :; }; eval "$(epochfs completion bash)"; COMP_WORDS=(epochfs "$@");'
        ' COMP_CWORD=$#; _epochfs_completion epochfs; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    command = ["bash", "-euc", script, "bash", *typed]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


# --- Ctrl-C -----------------------------------------------------------------------------------


def test_ctrl_c_is_exit_code_130() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with start("doctor", url) as process:
            silent.accept()
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=10)
    assert (process.returncode, errors.strip()) == (130, "epochfs: interrupted")

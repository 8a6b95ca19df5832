"""`epochfs completion`: the script by which a shell completes commands, options and files."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

_SHELLS = ("bash", "zsh", "fish")
_VARIABLE = "_EPOCHFS_COMPLETE"
"""What the script sets to have epochfs print completions: click derives it from the name."""


@click.command("completion")
@click.argument("shell", type=click.Choice(_SHELLS))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print a script that completes commands in a shell.

    In ~/.bashrc: eval "$(epochfs completion bash)". In ~/.zshrc: eval "$(epochfs completion zsh)".
    For fish: epochfs completion fish > ~/.config/fish/completions/epochfs.fish
    """
    completion = get_completion_class(shell)
    assert completion is not None
    root = context.find_root().command
    click.echo(completion(root, {}, "epochfs", _VARIABLE).source(), nl=False)

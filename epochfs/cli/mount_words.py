"""The words of `-o`, as mount(8) passes them.

Every long option of `mount` is also an `-o` word: `--cache-size 1G` is `-o cache_size=1G`. So `-o`
is turned into long options before anything is parsed, and both have one meaning and one error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import click

from epochfs.errors import printable

_KERNEL_WORDS = frozenset({"nosuid", "nodev", "noexec", "noatime"})
"""Words of mount(8) that are handed on to the kernel."""

_TAKEN_WORDS = frozenset(
    {"defaults", "rw", "ro", "dev", "suid", "exec", "atime", "relatime", "norelatime"}
    | {"auto", "noauto", "user", "nouser", "users", "owner", "group", "_netdev", "nofail"}
)
"""Words of mount(8) that change nothing here, or speak to mount(8) itself. It passes `rw` unasked,
so `rw` cannot be refused: the mount is read-only, and a write to it says so."""

_TAKEN_VALUES = re.compile(r"(?:[xX]-[^=]+|comment|user|owner|group)(?:=.*)?\Z", re.DOTALL)
"""The same with a value: `x-systemd.automount`, `comment=…`, and `user=NAME` as umount(8) reads."""


class MountCommand(click.Command):
    """A command whose long options can also be given as words of its `-o` option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse `args` with the words of `-o` put in front of them as long options."""
        given, _, _ = self.make_parser(ctx).parse_args(list(args))
        words = split_words(given.get("words") or ())
        # In front: an option on the command line itself then comes later, and wins.
        return super().parse_args(ctx, [*self._long_options(ctx, words), *args])

    def _long_options(self, ctx: click.Context, words: Iterable[str]) -> Iterator[str]:
        options = {
            name.removeprefix("--"): option
            for option in self.params
            if isinstance(option, click.Option)
            for name in option.opts
            if name.startswith("--")
        }
        for word in words:
            key, equals, _ = word.partition("=")
            name = key.replace("_", "-")
            if name in options:
                if not equals and not options[name].is_flag:
                    raise click.UsageError(f"-o {name} needs a value: -o {name}=…", ctx)
                yield f"--{name}{word[len(key) :]}"
            elif word not in _KERNEL_WORDS | _TAKEN_WORDS and not _TAKEN_VALUES.match(word):
                raise click.UsageError(f"no such mount option: -o {printable(word)}", ctx)


def split_words(options: Iterable[str]) -> list[str]:
    r"""Split the values of `-o` at their commas; `\,` is a comma within a word."""
    return [
        re.sub(r"\\(.)", r"\1", word)
        for option in options
        for word in re.findall(r"(?:\\.|[^,\\])+", option)
    ]


def kernel_words(options: Iterable[str]) -> tuple[str, ...]:
    """Return the words of `-o` that FUSE is to hand on to the kernel, each once."""
    return tuple(sorted(_KERNEL_WORDS.intersection(split_words(options))))

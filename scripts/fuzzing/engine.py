"""One target under atheris: `python -m scripts.fuzzing.engine NAME [LIBFUZZER OPTION…]`.

libFuzzer takes the process over and ends it, so each target has its own.
"""

from __future__ import annotations

import logging
import sys

import atheris

with atheris.instrument_imports(include=["epochfs"]):
    from scripts.fuzzing.targets import TARGETS


def main() -> None:
    """Feed the target until the options say that it is enough, or it fails."""
    logging.disable()
    name = sys.argv.pop(1)
    target = next(each for each in TARGETS if each.name == name)

    def feed(data: bytes) -> None:
        target.feed(data)

    atheris.Setup(sys.argv, feed)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

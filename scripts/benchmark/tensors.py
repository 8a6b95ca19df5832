"""Files of tensors in the safetensors format: made here, and read as programs read them.

`python tensors.py load FILE…` reads all tensors of files into memory; `python tensors.py one FILE
NAME` maps a file, reads one tensor, and waits a second after closing it. Both need safetensors and
numpy; making files needs neither.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

TENSOR_BYTES = 8_500_000
"""The size of each tensor but the last."""

_CHUNK = 1 << 20
_LATER_SECONDS = 1.0


def tensor_name(number: int) -> str:
    """Return the name of a tensor, counted from 0."""
    return f"blocks.{number}.weight"


def write_tensors(file: Path, size: int) -> None:
    """Write a file of `size` bytes: tensors of 16 bits a value, whose bytes do not compress.

    The format: the length of the header in eight bytes, the header in JSON, the tensors' bytes.
    """
    header = _header(size)
    source = random.Random(file.name)
    with file.open("wb") as stream:
        stream.write(header)
        left = size - len(header)
        while left:
            left -= stream.write(source.randbytes(min(left, _CHUNK)))


def _header(size: int) -> bytes:
    """Return the header of a file of `size` bytes, padded with spaces to a fixed length."""
    room = 64 << 10
    entries: dict[str, object] = {}
    begin, total = 0, size - room
    while begin < total:
        end = min(begin + TENSOR_BYTES, total)
        shape = [(end - begin) // 2]
        name = tensor_name(len(entries))
        entries[name] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries).encode().ljust(room - 8)
    return len(text).to_bytes(8, "little") + text


def _load(*files: str) -> None:
    from safetensors.numpy import load_file

    for file in files:
        assert load_file(file)


def _read_one(file: str, name: str) -> None:
    from safetensors import safe_open

    with safe_open(file, framework="numpy") as opened:
        assert opened.get_tensor(name).nbytes == TENSOR_BYTES
    time.sleep(_LATER_SECONDS)


_PROGRAMS: dict[str, Callable[..., None]] = {"load": _load, "one": _read_one}

if __name__ == "__main__":
    _PROGRAMS[sys.argv[1]](*sys.argv[2:])

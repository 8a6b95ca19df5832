"""Plain files merged as one layer, beside what unpacking them in their order would leave."""

from __future__ import annotations

import stat

from hypothesis import given
from hypothesis import strategies as st

from epochfs.layers.index import IMPLICIT
from epochfs.oci.manifests import Descriptor
from epochfs.oci.names import Digest
from epochfs.vfs.merge_layers import PlainFiles

names = st.sampled_from([b"a", b"b", b"c"])
paths = st.lists(names, min_size=1, max_size=4).map(b"/".join)


def unpacked(given: list[bytes]) -> dict[bytes, int]:
    """Return which of the files is left at each path, when each is written in its turn."""
    left: dict[bytes, int] = {}
    for number, path in enumerate(given):
        for other in list(left):
            if other == path or other.startswith(path + b"/") or path.startswith(other + b"/"):
                del left[other]
        left[path] = number
    return left


@given(st.lists(paths, max_size=12))
def test_plain_files_are_what_writing_them_in_order_would_leave(stated: list[bytes]) -> None:
    sizes = [Descriptor("text/plain", Digest.of(b""), number) for number in range(len(stated))]
    files = PlainFiles(list(zip(stated, sizes, strict=True)))
    found: dict[bytes, int] = {}
    todo = [b""]
    while todo:
        directory = todo.pop()
        assert files.see(directory).inode == IMPLICIT
        for name, kind in files.children(directory):
            path = directory + b"/" + name if directory else name
            if kind == stat.S_IFDIR:
                todo.append(path)
            else:
                number = files.see(path).inode
                assert number is not None
                assert files.inode(number).first == path
                assert files.see(path + b"/x").hides_below
                found[path] = files.inode(number).size
    assert found == unpacked(stated)

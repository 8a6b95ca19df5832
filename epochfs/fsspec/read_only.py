"""The methods of fsspec that would write: each raises EROFS."""

from __future__ import annotations

from typing import Any, NoReturn

from epochfs.fsspec.os_errors import read_only


class ReadOnlyMethods:
    """The methods of an fsspec file system that would write."""

    def _refuse(self, path: Any = "", *args: Any, **kwargs: Any) -> NoReturn:  # noqa: ANN401
        raise read_only(str(path))

    mkdir = makedirs = rmdir = _refuse
    touch = pipe_file = pipe = put_file = put = write_text = _refuse
    cp_file = copy = mv = rm_file = _rm = rm = _refuse
    start_transaction = _refuse

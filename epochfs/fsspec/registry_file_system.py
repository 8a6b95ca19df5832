"""`RegistryFileSystem`: the tree of a registry in fsspec's words.

It translates, and decides nothing but what fsspec leaves open: links are followed (`links`), a
listing is complete or an error, and whatever writes raises EROFS.
"""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NoReturn

from fsspec.utils import tokenize

from epochfs.config import LayoutPath
from epochfs.errors import ReadOnly
from epochfs.fsspec.constructor import Options, is_same_host
from epochfs.fsspec.links import Place, followed
from epochfs.fsspec.listing import Info, info, ls, sorted_out, unfollowed, unique_key
from epochfs.fsspec.open_sessions import OpenSession, keep_inherited, opened
from epochfs.fsspec.os_errors import os_error, translated
from epochfs.fsspec.reading import ReadingMethods
from epochfs.fsspec.registry_file import Handle, RegistryFile
from epochfs.fsspec.urls import PROTOCOL, join_url, split_url

if TYPE_CHECKING:
    from epochfs.vfs.filesystem import FileSystem

_FSSPEC_OPTIONS = frozenset(
    {"use_listings_cache", "listings_expiry_time", "max_paths", "asynchronous", "loop"}
    | {"skip_instance_cache", "add_docs", "add_aliases"}
)
"""What fsspec itself may pass to any constructor, and which changes nothing here."""


class RegistryFileSystem(ReadingMethods):
    """A registry, or an OCI image layout, to read: `epochfs://HOST[:PORT]/<path in the tree>`.

    `host`: HOST[:PORT], also with `https://` or `http://`, or with `/REPO:TAG` behind it for the
    files of one artifact; `oci:DIRECTORY` for a layout. Without it, that of EPOCH_SERVER.
    `use_ssl`: https or http, where `host` does not say; None: http on loopback only.
    `verify`: False to trust any certificate, or a file of certificates to trust; None: those of
    the system, and any on loopback. `cert`: a client certificate, or that and its key.
    `username` with `password_file`, or `token_file`: a login; without, those of docker, podman and
    skopeo, and EPOCH_REGISTRY_TOKEN. A `password` or `token` may be given, and is never pickled.
    `timeout`: of every operation, in seconds, or as `5m`; so are all times.
    `repositories`: listed even if the registry has no catalog.
    `hosts_dir`: where mirrors are configured, as in containerd's certs.d.
    `cache_dir`: by default the user's own; None: nothing is written anywhere.
    `cache_size`, `manifest_limit`: in bytes, or as `10G`. `connections`: the most for downloads.
    `metadata_ttl`: how old tags and listings may be; `stale_if_error`: how much older while the
    registry is down. `offline_ok`: open what is cached if it is down from the start.
    `verify_first`: hash all of a blob before its first byte is read. `show_rootfs`: list rootfs/.
    `soci_referrers`: trust SOCI indexes that merely refer to an image.
    `unverified_layers`: open files of a layer before its digest is verified.
    `platform`: OS/ARCH of volume/ where there is a choice.

    Raises ValueError for an option that is wrong by itself; nothing is sent until it is used.
    """

    protocol = PROTOCOL
    root_marker = "/"
    cachable = True

    def __init__(self, host: str = "", **options: Any) -> None:  # noqa: ANN401
        """Keep the options; see the class."""
        own = {name: value for name, value in options.items() if name not in _FSSPEC_OPTIONS}
        if "repositories" in own:
            own["repositories"] = tuple(own["repositories"])
        self._options = Options(host, **own)
        super().__init__()
        self._session: OpenSession | None = None
        # fsspec strips URLs by the class, which cannot know that one is of another registry.
        self.__dict__["_strip_protocol"] = self._own_path

    # ---- URLs --------------------------------------------------------------------------------

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:  # noqa: ANN401
        """Return the path in the tree of a URL or path, or of each in a list."""
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        return split_url(os.fspath(path))[1]

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, str]:
        host = split_url(path)[0]
        return {"host": host} if host else {}

    def _own_path(self, path: Any) -> Any:  # noqa: ANN401
        """Do what `_strip_protocol` does; raises ValueError for the URL of another registry."""
        if isinstance(path, list):
            return [self._own_path(one) for one in path]
        host, own = split_url(os.fspath(path))
        if host and host != self._options.host:
            with translated(host):
                source = self._options.source()
            if not is_same_host(source, host):
                shown = self._options.host or "this host"
                raise ValueError(f"{join_url(host, own)} is not of {shown}")
        return own

    def unstrip_protocol(self, name: str) -> str:
        """Return the URL of a path, with the host if it is a registry from its root on."""
        own = self._own_path(name)
        with translated(own):
            source = self._options.source()
        whole = not isinstance(source, LayoutPath) and source.prefix is None
        return join_url(source.base.partition("://")[2] if whole else "", own)

    @property
    def fsid(self) -> str:
        """What it shows: the same in every session."""
        with translated(""):
            return f"{PROTOCOL}_{tokenize(str(self._options.source()))}"

    # ---- the session -------------------------------------------------------------------------

    def session(self) -> OpenSession:
        """Return this process's session, opened by the first to ask. Raises EpochfsError."""
        session = self._session
        if session is None or not session.is_ours:
            if session is not None:
                keep_inherited(session)
            self._session = session = opened(self._options.settings())
        return session

    @contextlib.contextmanager
    def _using(self, path: str) -> Iterator[FileSystem]:
        with translated(path), self.session().in_use() as filesystem:
            yield filesystem

    def followed(self, path: str) -> Place:
        """Return the place that a path leads to. Raises OSError."""
        with self._using(path) as filesystem:
            return followed(filesystem, path)

    def opened(self, place: Place) -> Handle:
        """Open a place. Raises OSError."""
        with translated(place.path):
            return Handle(self.session(), place)

    def invalidate_cache(self, path: str | None = None) -> None:
        """Ask the registry anew for whatever it said of its names, also while others wait."""
        if self._session is not None and self._session.is_ours:
            self._session.filesystem.drop_listings()
        super().invalidate_cache(path)

    # ---- pickles -----------------------------------------------------------------------------

    def __reduce__(self) -> tuple[Any, ...]:
        if self._options.secrets:
            raise pickle.PicklingError(self._refusal())
        reduced: tuple[Any, ...] = super().__reduce__()
        return reduced

    def to_dict(self, *, include_password: bool = True) -> dict[str, Any]:
        """Return what `from_dict` makes an equal file system of; never a secret.

        Raises ValueError if there is one, unless `include_password` is False.
        """
        if include_password and self._options.secrets:
            raise ValueError(self._refusal())
        said: dict[str, Any] = super().to_dict(include_password=include_password)
        return {name: value for name, value in said.items() if name not in ("password", "token")}

    def _refusal(self) -> str:
        given = " and ".join(self._options.secrets)
        return (
            f"this file system was given a {given}, which must not leave this process: "
            f"give {given}_file, or log in with docker, podman or skopeo where it is used"
        )

    # ---- what is there -----------------------------------------------------------------------

    def info(self, path: str, **kwargs: Any) -> Info:  # noqa: ANN401
        """Return what is known of a path, links followed: name, size, type, mode, mtime, islink.

        With `digest` and `mediaType` for what is a blob or manifest, `destination` for a link.
        """
        path = self._strip_protocol(path)
        with self._using(path) as filesystem:
            return info(filesystem, path)

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:  # noqa: ANN401
        """List a directory, or one file; all of it, or an error.

        A link that cannot be followed now has the type "link", and its own error when it is used.
        """
        path = self._strip_protocol(path)
        with self._using(path) as filesystem:
            return ls(filesystem, path, detail=detail)

    def walk(
        self,
        path: str,
        maxdepth: int | None = None,
        topdown: bool = True,
        on_error: Any = "raise",  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> Iterator[tuple[str, Any, Any]]:
        """Yield each directory below a path as fsspec does, but raise what cannot be listed.

        Only what is not there at all is empty. Links to directories are followed down to
        `maxdepth`; without one they are only named, as links can lead in circles.
        """
        path = self._strip_protocol(path)
        if maxdepth is not None and maxdepth < 1:
            raise ValueError("maxdepth must be at least 1")
        detail = kwargs.pop("detail", False)
        try:
            found = self.ls(path, detail=True, **kwargs)
        except OSError as error:
            if callable(on_error):
                on_error(error)
            elif on_error == "raise" and not isinstance(error, FileNotFoundError):
                raise
            return
        dirs, files = sorted_out(path, found)
        yielded = path, (dirs if detail else list(dirs)), (files if detail else list(files))
        if topdown:
            yield yielded
        deeper = maxdepth - 1 if maxdepth is not None else None
        if deeper != 0:
            for name in list(yielded[1]):
                one = dirs[name] if name in dirs else {"name": f"{path.rstrip('/')}/{name}"}
                if deeper is not None or not one.get("islink"):
                    yield from self.walk(
                        one["name"], deeper, topdown, on_error, detail=detail, **kwargs
                    )
        if not topdown:
            yield yielded

    def exists(self, path: str, **kwargs: Any) -> bool:  # noqa: ANN401
        """Whether there is such a path; raises where that cannot be known now."""
        return bool(self._type(path))

    def lexists(self, path: str, **kwargs: Any) -> bool:  # noqa: ANN401
        """Whether there is such a path, be it a link that leads nowhere."""
        path = self._strip_protocol(path)
        try:
            with self._using(path) as filesystem:
                unfollowed(filesystem, path)
        except FileNotFoundError:
            return False
        return True

    def isdir(self, path: str) -> bool:
        """Whether a path is a directory; raises where that cannot be known now."""
        return self._type(path) == "directory"

    def isfile(self, path: str) -> bool:
        """Whether a path is a file; raises where that cannot be known now."""
        return self._type(path) == "file"

    def _type(self, path: str) -> str:
        """Return fsspec's type of a path, "" for what is not there."""
        try:
            return str(self.info(path)["type"])
        except FileNotFoundError:
            return ""

    def ukey(self, path: str) -> str:
        """Return the digest of what a path shows, or else what changes when that may.

        A file inside a layer is named by its manifest's digest, and its path there.
        """
        path = self._strip_protocol(path)
        with self._using(path) as filesystem:
            return unique_key(filesystem, path, str(self.session().settings.platform))

    checksum = ukey

    def modified(self, path: str) -> datetime:
        """Return when a path was last changed, as far as the registry or this machine knows."""
        return datetime.fromtimestamp(self.info(path)["mtime"], UTC)

    created = modified  # what a digest names never changes

    # ---- reading, and no writing -------------------------------------------------------------

    def _refuse(self, path: Any = "", *args: Any, **kwargs: Any) -> NoReturn:  # noqa: ANN401
        raise os_error(ReadOnly("this file system is read-only"), str(path))

    mkdir = makedirs = rmdir = _refuse
    touch = pipe_file = pipe = put_file = put = write_text = _refuse
    cp_file = copy = mv = rm_file = _rm = rm = _refuse
    start_transaction = _refuse

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        cache_options: dict[str, Any] | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> RegistryFile:
        if mode != "rb":
            self._refuse(path)
        return RegistryFile(
            self, path, mode, block_size=block_size, cache_options=cache_options, **kwargs
        )

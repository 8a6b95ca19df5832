"""The parsers, with what must hold of whatever they accept."""

from __future__ import annotations

import base64
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from epochfs.client.auth.login_files import AuthFile, Helper, Login
from epochfs.client.auth.tokens import parse_challenges, parse_token
from epochfs.client.hosts import find
from epochfs.client.transport import BlobStream, Request, Url, next_page
from epochfs.client.transport.faults import error_entries
from epochfs.client.transport.refusals import Asker, refusal, retry_after
from epochfs.client.transport.request import Sent
from epochfs.client.transport.responses import Reply, content_length
from epochfs.config import RegistryUrl, parse_seconds, parse_size
from epochfs.demo.samples import encode
from epochfs.errors import (
    CredentialsUnavailable,
    Denied,
    EpochfsError,
    InvalidName,
    ProtocolViolation,
    TooLarge,
    UsageError,
)
from epochfs.layers.entry import clean_path
from epochfs.layers.soci import SociTable
from epochfs.layers.tar import TarReader
from epochfs.layers.tar_stream import TarStream
from epochfs.oci.kinds import SparseMap, StoredFile, parse_config
from epochfs.oci.manifests import MAX_SIZE, Index, load_json, parse
from epochfs.oci.names import MAX_REPOSITORY_BYTES, MAX_SEGMENT_BYTES, Digest, Repository, Tag
from scripts.fuzzing.target import Target

HERE = Url.parse("https://reg.example/v2/_catalog?n=2")
LONGEST_TOKEN_LIFE = 86400.0


def _text(data: bytes) -> str:
    """Return bytes as a path or JSON has them: text in which anything may stand."""
    return data.decode("utf-8", "surrogateescape")


def _header(data: bytes) -> str:
    """Return bytes as `http.client` hands a header on."""
    return data.decode("latin-1")


def _repository(data: bytes) -> None:
    repository = Repository.parse(_text(data))
    assert len(repository.name.encode()) <= MAX_REPOSITORY_BYTES
    for segment in repository.segments:
        _safe_in_a_path(segment)


def _tag(data: bytes) -> None:
    _safe_in_a_path(Tag.parse(_text(data)).name)


def _safe_in_a_path(segment: str) -> None:
    assert segment not in ("", ".", "..")
    assert "/" not in segment
    assert segment.isprintable()
    assert len(segment.encode()) <= MAX_SEGMENT_BYTES


def _digest(data: bytes) -> None:
    text = _text(data)
    assert str(Digest.parse(text)) == text
    assert text.isascii()
    assert text.isalnum() or text.count(":") == 1


def _manifest(data: bytes) -> None:
    view = parse(data)
    found = view.manifests if isinstance(view, Index) else view.layers
    for descriptor in found:
        assert Digest.parse(str(descriptor.digest)) == descriptor.digest
        assert 0 <= descriptor.size <= MAX_SIZE


def _snapshot_config(data: bytes) -> None:
    for entry in parse_config(data).files.values():
        if isinstance(entry, StoredFile):
            assert 0 <= entry.size <= MAX_SIZE
            assert entry.holes is None or _ascends(entry.holes)


def _ascends(holes: SparseMap) -> bool:
    """Whether all pieces of a sparse map are found where they are, and none in another."""
    found = list(holes.touched(0, holes.size))
    stops = [0, *(stop for _, stop, _ in found)]
    in_order = all(stop <= start for stop, (start, _, _) in zip(stops, found, strict=False))
    return in_order and sum(stop - start for start, stop, _ in found) == holes.length


def _tar(data: bytes) -> None:
    for entry in TarReader(TarStream(iter([memoryview(data)]), 1 << 40)):
        assert clean_path(entry.path) == entry.path
        end = 0
        for piece in entry.pieces:
            assert end <= piece.start < piece.start + piece.size <= entry.size
            end = piece.start + piece.size


def _soci(data: bytes) -> None:
    table = SociTable(data.replace(_WINDOW, bytes(32 << 10)), _LAYER_BYTES)
    spans = [span for span, _ in table.spans()]
    end = 0
    for span in spans:
        assert span.start == end
        assert 0 <= span.offset < span.offset + span.packed <= _LAYER_BYTES
        end += span.size
    for entry in table.entries():
        assert clean_path(entry.path) == entry.path
        assert all(0 <= one.offset < one.offset + one.size <= end for one in entry.pieces)


def _challenge(data: bytes) -> None:
    for challenge in parse_challenges(_header(data)):
        assert challenge.scheme == challenge.scheme.lower() != ""


def _token(data: bytes) -> None:
    value, lifetime, refresh_token = parse_token(data)
    assert refresh_token.isascii()
    assert value.isascii()
    assert not value or (value.isprintable() and " " not in value)
    assert 0 < lifetime <= LONGEST_TOKEN_LIFE


def _url(data: bytes) -> None:
    url = Url.parse(_header(data))
    assert Url.parse(str(url)) == url


def _location(data: bytes) -> None:
    assert HERE.follow(_header(data)).origin.scheme == "https"


def _link(data: bytes) -> None:
    page = next_page(_header(data), HERE)
    assert page is None or (page.origin == HERE.origin and page.target.startswith("/v2/"))


def _content_range(data: bytes) -> None:
    """Hold a Content-Range against a request whose range the first two bytes choose."""
    start, length = (data[0], data[1]) if len(data) > 1 else (0, 0)
    end = start + length if length else None
    answer: Any = SimpleNamespace(
        what="GET",
        status=206,
        headers={"Content-Range": _header(data[2:])},
    )
    stream = BlobStream(answer, start, end)
    assert stream.start == start
    assert stream.total is None or stream.total > start


def _content_length(data: bytes) -> None:
    length = content_length("GET", {"Content-Length": _header(data)})
    assert length is not None
    assert 0 <= length < 10**18


def _error_body(data: bytes) -> None:
    status = 400 + (data[0] if data else 0)
    head, _, body = data[1:].partition(b"\n")
    headers = {"WWW-Authenticate": _header(head)}
    reply = Reply(Sent(Request("GET", HERE), HERE), status, headers, body)
    asker = Asker("nobody", anonymous=True, static=False, mirror=False, clean=str)
    assert isinstance(refusal(reply, asker, HERE.origin), EpochfsError)
    assert len(error_entries(data[1:])) <= 10


def _retry_after(data: bytes) -> None:
    assert retry_after(_header(data)) >= 0


def _registry_url(data: bytes) -> None:
    url = RegistryUrl.parse(_text(data))
    assert RegistryUrl.parse(url.base) == RegistryUrl(url.base)
    assert url.prefix is None or Repository.parse(url.prefix.name) == url.prefix


def _number(read: Callable[[str], float]) -> Callable[[bytes], None]:
    def check(data: bytes) -> None:
        assert 0 <= read(_text(data)) < float("inf")

    return check


_HOSTS_DIRECTORY = tempfile.TemporaryDirectory(prefix="epochfs-fuzz-hosts-")


def _hosts_file(data: bytes) -> None:
    directory = Path(_HOSTS_DIRECTORY.name)
    (directory / "_default").mkdir(exist_ok=True)
    (directory / "_default" / "hosts.toml").write_bytes(data)
    found = find(directory, RegistryUrl("https://reg.example"))
    for host in (found.origin, *found.mirrors):
        assert Url.parse(host.base).target == "/"
        assert host.root == "" or host.root.startswith("/")  # "": an overridden path of nothing
        assert all(value.isprintable() or "\t" in value for _, value in host.headers)


def _auth_file(data: bytes) -> None:
    file = AuthFile.parse(Path("auth.json"), data)
    for one in file.find(["reg.example", "docker.io"], "team/app"):
        assert isinstance(one, Login | Helper | CredentialsUnavailable)


_DESCRIPTOR = {"mediaType": "a/b", "digest": str(Digest.of(b"x")), "size": 1}
_MANIFEST = encode({"config": _DESCRIPTOR, "layers": [_DESCRIPTOR], "annotations": {"a": "b"}})
_INDEX = encode({"manifests": [{**_DESCRIPTOR, "platform": {"os": "linux"}}]})
_SPARSE_MAP = '[{"o":0,"l":5},{"o":9,"l":1}]'
_SNAPSHOT_CONFIG = encode(
    {"files": {"a": {"size": 6, "chunks": ["x"], "sparseMap": _SPARSE_MAP, "sparseSize": 10}}}
)
_TAR = tarfile.TarInfo("a").tobuf(tarfile.PAX_FORMAT) + bytes(1024)
_LAYER_BYTES = 220
_WINDOW = b"\0window\0"
"""Stands for the 32 KiB of a checkpoint, which would leave the rest of a table few mutations."""
_SOCI = zlib.decompress(
    base64.b85decode(
        b"c-obb%}T>S5XYw)OO+~$IS48g6zaj&-OX;&mL9|pRH!H@h~AQHVvEvh5^25pEaKz%2tJIn=^m2WLml|-WOpYs|Cu"
        b"!bU=?=3fD)9!ge|Dx9&iQNL4H8n#@JPn*ExWB^rYTgK^MFX{B9UmD@hP1aS;<4P{eZs#$o%&H}Y9fX|Hpo_VAVfh"
        b"X%Ca1UhNi4sxk#6(MJb$X6kMMlwtqM^v~}B4jVh-kAs^%&JjZqx_b!7PVT8JOIqD@k#}k$N3DM_h^bnmSNItJtKM"
        b"GDi;Nhv#2cS!b+o3T1vkGHj#DY=J@=gb6+31NfOoH;vlMz)GzP<n!cG=dOD@EMutgi>*;$+Sl5l@bFcrTTb<<<%C"
        b"Lr77hn;V(_YikD%YLfsF9x`ao1(SZh4aUp&N21uzW743<x6@3q2wlR5o2pND}(O6P`mkcf3GYzC%URmXtF)l=k+A"
        b"uA$c@820*dF#OZlFThbwi2"
    )
)
"""A table of a layer of that many bytes, with a directory, a file and a hard link."""
_HOSTS_FILE = b"""server = "https://reg.example"
[host."http://m.example:5000/v2/x"]
capabilities = ["pull", "resolve"]
skip_verify = true
override_path = true
ca = ["ca.crt"]
client = [["a.cert", "a.key"]]
header = {x-a = ["b"]}
"""
_AUTH_FILE = encode(
    {
        "auths": {"reg.example/team": {"auth": "dTpw"}, "reg.example": {"identitytoken": "t"}},
        "credHelpers": {"docker.io": "pass"},
    }
)

TARGETS = (
    Target("repository", _repository, (InvalidName,), (b"library/nginx", b"a")),
    Target("tag", _tag, (InvalidName,), (b"latest", b"v1.0")),
    Target("digest", _digest, (InvalidName,), (str(Digest.of(b"x")).encode(),)),
    Target("json", load_json, (ProtocolViolation,), (_MANIFEST, b'{"a":[1,2.5e3,null,"\\u00e9"]}')),
    Target("manifest", _manifest, (ProtocolViolation,), (_MANIFEST, _INDEX)),
    Target("snapshot-config", _snapshot_config, (), (_SNAPSHOT_CONFIG,)),
    Target("soci", _soci, (InvalidName, ProtocolViolation, TooLarge), (_SOCI,)),
    Target("tar", _tar, (ProtocolViolation, TooLarge), (_TAR, b"")),
    Target(
        "challenge", _challenge, (), (b'Bearer realm="https://x/",scope="a b"', b"Basic, X y==")
    ),
    Target("token", _token, (ProtocolViolation,), (b'{"token":"t","expires_in":300}',)),
    Target("url", _url, (ProtocolViolation,), (b"https://[::1]:5000/a?b=c", b"http://h/%2F")),
    Target("location", _location, (ProtocolViolation,), (b"/v2/x", b"//h:1/x", b"https://h/?s")),
    Target("link", _link, (ProtocolViolation,), (b'</v2/x?n=1>; rel="next"',)),
    Target(
        "content-range",
        _content_range,
        (ProtocolViolation,),
        (b"\1\2bytes 1-2/9", b"\1\0bytes 1-8/9", b"\0\5bytes 0-4/*"),
    ),
    Target("content-length", _content_length, (ProtocolViolation,), (b"0", b"1024")),
    Target(
        "error-body",
        _error_body,
        (),
        (
            b'\4\n{"errors":[{"code":"X_UNKNOWN","message":"x"}]}',
            b'\1Bearer realm="https://reg.example/token",error="invalid_token"\n',
        ),
    ),
    Target("retry-after", _retry_after, (), (b"120", b"Wed, 21 Oct 2065 07:28:00 GMT")),
    Target("hosts.toml", _hosts_file, (UsageError,), (_HOSTS_FILE, b"server = 'h:1'")),
    Target("auth.json", _auth_file, (Denied,), (_AUTH_FILE, b'{"credsStore":"x"}')),
    Target("registry-url", _registry_url, (UsageError,), (b"http://h:1/a/b", b"[::1]:5000", b"h")),
    Target("size", _number(parse_size), (UsageError,), (b"10G", b"1.5 MiB")),
    Target("duration", _number(parse_seconds), (UsageError,), (b"500ms", b"1.5h")),
)

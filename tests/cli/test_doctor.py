"""What a mount needs of a registry and of the machine, and how `doctor` shows it."""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
from support.registries import EmbeddedRegistry
from support.subjects import PASSWORD, USERNAME

from epochfs.cli import doctor, main, system
from epochfs.cli.options import registry_url
from epochfs.config import Credentials, TransportOptions
from epochfs.demo import samples
from epochfs.demo.registry import EPOCH, Behaviour, Request, Response
from epochfs.errors import Denied, MountFailure, ProtocolViolation, TlsFailure, Unavailable
from epochfs.oci.names import Repository
from epochfs.session import Connection, opening

ANONYMOUS = Credentials()


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EPOCH_SERVER", "EPOCH_REGISTRY_TOKEN", "EPOCH_CA_CERT"):
        monkeypatch.delenv(name, raising=False)


# --- is the registry usable? ------------------------------------------------------------------


def check(url: str, credentials: Credentials = ANONYMOUS, *names: str) -> None:
    repositories = tuple(Repository(name) for name in names)
    connection = Connection(TransportOptions(timeout=5), credentials, repositories)
    client = opening.connect(registry_url(url), connection)
    try:
        opening.check(client, connection)
    finally:
        client.close()


def test_a_registry_that_answers_is_usable() -> None:
    with EmbeddedRegistry() as registry:
        check(registry.url)


def test_a_refused_connection_is_told_with_the_url() -> None:
    with pytest.raises(Unavailable, match=r"^registry http://127\.0\.0\.1:1 cannot be reached: "):
        check("http://127.0.0.1:1")


def test_a_server_without_tls_is_told_with_that_cure_alone() -> None:
    with EmbeddedRegistry() as registry, pytest.raises(TlsFailure) as failure:
        check(f"https://{registry.host}")
    assert str(failure.value).endswith("epochfs does not fall back to http")


def test_missing_credentials_are_told_with_the_options() -> None:
    behaviour = Behaviour(auth="basic")
    with EmbeddedRegistry(behaviour, username=USERNAME, password=PASSWORD) as registry:
        with pytest.raises(Denied, match="--username and --password-file"):
            check(registry.url)
        with pytest.raises(Denied, match="check the credentials"):
            check(registry.url, Credentials(USERNAME, "wrong"))
        check(registry.url, Credentials(USERNAME, PASSWORD))


@pytest.mark.parametrize("names", [[], ["library/nginx"]])
def test_a_denied_ping_is_no_denial_where_all_else_is_open(names: list[str]) -> None:
    behaviour = replace(EPOCH, auth="basic")
    with EmbeddedRegistry(behaviour, username=USERNAME, password=PASSWORD) as registry:
        check(registry.url, ANONYMOUS, *names)


class Website(EmbeddedRegistry):
    """Knows no path."""

    status = 404

    def respond(self, request: Request) -> Response:
        return Response(self.status, {"Content-Type": "text/html"}, b"<h1>Not here</h1>")


def test_a_web_server_that_is_no_registry_is_told() -> None:
    with Website() as website:
        website.status = 410
        with pytest.raises(ProtocolViolation, match="does not answer as a registry does"):
            check(website.url)


def test_a_server_without_the_root_of_the_api_may_be_a_registry(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Website() as website:
        with pytest.raises(opening.NoApiRoot, match=r"may not be a registry: GET .*404"):
            check(website.url)
        main(["doctor", website.url])
        table = rows(capsys)
    assert table["registry"][0] == "warn"
    assert "may not be a registry" in table["registry"][1]
    assert table["access"][0] == "ok"


def test_one_of_several_repositories_that_is_denied_does_not_refuse_the_mount() -> None:
    """At a registry whose `/v2/` is denied."""

    class Partly(EmbeddedRegistry):
        def respond(self, request: Request) -> Response:
            if "/open/" in request.path:
                return super().respond(request)
            return Response(403, {}, b'{"errors":[{"code":"DENIED"}]}')

    with Partly() as registry:
        samples.load(registry)
        registry.put_manifest("open/app", "latest", b"{}", "application/json")
        check(registry.url, ANONYMOUS, "closed/app", "open/app")
        check(registry.url, ANONYMOUS, "open/app", "closed/app", "closed/other")
        with pytest.raises(Denied, match="closed/app/tags/list: 403"):
            check(registry.url, ANONYMOUS, "closed/app", "closed/other")
        with pytest.raises(Denied):
            check(registry.url)


# --- doctor -----------------------------------------------------------------------------------


def rows(capsys: pytest.CaptureFixture[str]) -> dict[str, tuple[str, str]]:
    """State and note of each subject in doctor's table."""
    table = {}
    for line in capsys.readouterr().out.splitlines():
        state, subject, note = line.split(maxsplit=2)
        table[subject] = (state, note)
    return table


def test_doctor_looks_at_the_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor", "--cache-dir", str(tmp_path / "not" / "yet")])
    table = rows(capsys)
    assert table["python"] == ("ok", f"{sys.version.split()[0]}, {sys.executable}")
    assert table["cache"][0] == "ok"
    assert table["rootfs"][0] == "ok"
    assert f"{tmp_path}/not/yet" in table["cache"][1]
    subjects = {"kernel", "/dev/fuse", "libfuse", "binding", "fusermount3"}
    subjects |= {"max-read", "read-ahead", "passthrough"}
    assert subjects < set(table)
    assert "registry" not in table
    assert not (tmp_path / "not").exists()


def test_doctor_tells_how_a_mount_will_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = tmp_path / "limit"
    limit.write_text("256\n")
    monkeypatch.setattr(doctor, "_MAX_PAGES", limit)
    monkeypatch.setattr(os, "sysconf", lambda name: 4096)
    monkeypatch.setattr(system, "library_version", lambda: (3, 14))
    main(["doctor"])
    table = rows(capsys)
    assert table["max-read"] == ("ok", "1008 KiB")
    assert table["passthrough"][0] == "warn"
    assert "libfuse 3.14 cannot: install 3.17" in table["passthrough"][1]
    limit.write_text("32\n")
    monkeypatch.setattr(system, "library_version", lambda: (3, 17))
    monkeypatch.setattr(doctor, "obstacle", lambda library: "")
    main(["doctor"])
    table = rows(capsys)
    assert table["max-read"][0] == "warn"
    assert table["max-read"][1].endswith("sysctl fs.fuse.max_pages_limit=252)")
    assert table["passthrough"][0] == "ok"


@pytest.mark.parametrize(
    ("conf", "state"),
    [
        (None, "warn"),
        ("", "warn"),
        ('PRUNEFS="NFS nfs fuse.sshfs"', "warn"),
        ('# PRUNEFS="fuse.epochfs"', "warn"),
        ('PRUNEFS = "NFS fuse.epochfs fuse.sshfs"', "ok"),
    ],
)
def test_doctor_tells_whether_updatedb_walks_mounts(
    conf: str | None,
    state: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "updatedb").touch(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(system, "_UPDATEDB_CONF", tmp_path / "updatedb.conf")
    if conf is not None:
        (tmp_path / "updatedb.conf").write_text(f"# comment\n{conf}\n")
    main(["doctor"])
    found, note = rows(capsys)["updatedb"]
    assert found == state
    assert ("PRUNEFS" in note) == (state == "warn")


def test_doctor_fails_once_for_a_missing_libfuse(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FUSE_LIBRARY_PATH", raising=False)
    monkeypatch.setattr(system, "_LIBRARIES", ("libfuse-of-nobody.so.9",))
    assert main(["doctor"]) == 1
    table = rows(capsys)
    states = {subject: table[subject][0] for subject in ("libfuse", "max-read", "passthrough")}
    assert states == {"libfuse": "FAIL", "max-read": "warn", "passthrough": "warn"}


def test_doctor_tells_who_may_raise_the_read_ahead(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_READ_AHEAD", tmp_path)
    main(["doctor"])
    cure = "make /sys writable" if os.geteuid() == 0 else "mount as root"
    note = f"cannot be raised, so the kernel reads 128 KiB ahead: {cure}"
    assert rows(capsys)["read-ahead"] == ("warn", note)
    (tmp_path / "0:39").mkdir()
    (tmp_path / "0:39" / "read_ahead_kb").write_text("128\n")
    main(["doctor"])
    assert rows(capsys)["read-ahead"] == ("ok", "can be raised to 1008 KiB")


def test_a_cache_that_others_may_write_to_fails_with_its_cure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path.chmod(0o777)
    assert main(["doctor", "--cache-dir", str(tmp_path)]) == 1
    [line] = [line for line in capsys.readouterr().out.splitlines() if " cache " in line]
    assert line.startswith("FAIL")
    assert "others can write to it: chmod go-w it" in line


def test_doctor_looks_at_a_registry(capsys: pytest.CaptureFixture[str]) -> None:
    with EmbeddedRegistry() as registry:
        samples.load(registry)
        main(["doctor", registry.url])
    table = rows(capsys)
    assert table["registry"] == ("ok", f"{registry.url} answers")
    assert table["access"] == ("ok", "anonymous")
    assert table["catalog"] == ("ok", "3 repositories")
    assert table["range"][0] == "ok"


def test_doctor_says_what_a_registry_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    with EmbeddedRegistry(Behaviour(ranges=False, catalog=False)) as registry:
        samples.load(registry)
        main(["doctor", "--repo", "demo/team/app", registry.url])
    table = rows(capsys)
    assert table["catalog"][0] == "warn"
    assert "--repo" in table["catalog"][1]
    assert table["range"][0] == "warn"


def test_doctor_fails_where_the_registry_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "http://127.0.0.1:1"]) == 1
    table = rows(capsys)
    assert table["registry"][0] == "FAIL"
    assert "access" not in table


def test_doctor_fails_where_access_is_denied(capsys: pytest.CaptureFixture[str]) -> None:
    behaviour = Behaviour(auth="basic")
    with EmbeddedRegistry(behaviour, username=USERNAME, password=PASSWORD) as registry:
        assert main(["doctor", registry.url]) == 1
    table = rows(capsys)
    assert table["registry"][0] == "ok"
    assert table["access"][0] == "FAIL"


# --- what FUSE needs --------------------------------------------------------------------------


def test_a_missing_device_is_told_with_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "_DEVICE", tmp_path / "fuse")
    with pytest.raises(MountFailure, match=r"does not exist: .*modprobe fuse.* /dev/fd/N"):
        system.device()


def test_a_device_that_may_not_be_opened_is_told_with_what_needs_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "_DEVICE", tmp_path)  # a directory cannot be opened either
    with pytest.raises(MountFailure, match=r"cannot be opened .* /dev/fd/N, which another process"):
        system.device()


def test_a_missing_libfuse_is_told_with_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FUSE_LIBRARY_PATH", raising=False)
    monkeypatch.setattr(system, "_LIBRARIES", ("libfuse-of-nobody.so.9",))
    with pytest.raises(MountFailure, match="apt-get install fuse3"):
        system.library()


def test_a_library_named_in_the_environment_is_kept_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSE_LIBRARY_PATH", "/nowhere/libfuse3.so")
    with pytest.raises(MountFailure, match=r"FUSE_LIBRARY_PATH=/nowhere/libfuse3\.so"):
        system.library()


def test_a_missing_fusermount_is_told_with_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MountFailure, match="apt-get install fuse3"):
        system.helper()


@pytest.mark.parametrize("text", ["", "#user_allow_other\n"])
def test_other_users_need_roots_permission(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = tmp_path / "fuse.conf"
    configuration.write_text(text)
    monkeypatch.setattr(system, "_FUSE_CONF", configuration)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(MountFailure, match="user_allow_other"):
        system.user_allow_other()
    configuration.write_text("mount_max = 7\nuser_allow_other \n")
    assert "user_allow_other is set" in system.user_allow_other()


# --- may one push? ----------------------------------------------------------------------------


class Guarded(EmbeddedRegistry):
    """Refuses methods, with a status and a code, but always lets an upload be cancelled."""

    refused: tuple[tuple[str, int, str], ...] = ()

    def respond(self, request: Request) -> Response:
        for method, status, code in self.refused:
            cancels = request.method == "DELETE" and "/uploads/" in request.path
            if request.method == method and not cancels:
                return Response(status, {}, f'{{"errors":[{{"code":"{code}"}}]}}'.encode())
        return super().respond(request)


@pytest.mark.parametrize(
    ("refused", "state", "note"),
    [
        ((), "ok", "permitted, to demo/app"),
        ((("POST", 405, "UNSUPPORTED"),), "warn", "mount without -o rw"),
        ((("POST", 403, "DENIED"),), "warn", "the registry denies pushing to demo/app"),
        (
            (("DELETE", 405, "UNSUPPORTED"),),
            "ok",
            "permitted, to demo/app; the registry does not delete manifests and blobs",
        ),
    ],
)
def test_doctor_tells_whether_one_may_push(
    refused: tuple[tuple[str, int, str], ...],
    state: str,
    note: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Guarded() as registry:
        registry.put_manifest("demo/app", "latest", b"{}", "application/json")
        registry.refused = refused
        main(["doctor", registry.url])
        found = rows(capsys)["push"]
        assert (found[0], found[1].startswith(note) or note in found[1]) == (state, True)
        begun = 1 if state == "ok" else 0
        assert registry.count("DELETE", "/uploads/") == begun


def test_doctor_needs_a_repository_to_tell_whether_one_may_push(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with EmbeddedRegistry() as registry:
        main(["doctor", registry.url])
        assert rows(capsys)["push"][0] == "warn"
        main(["doctor", registry.url, "--repo", "team/new"])
        assert rows(capsys)["push"] == ("ok", "permitted, to team/new")
        with urllib.request.urlopen(f"{registry.url}/v2/_catalog") as answer:
            assert json.load(answer) == {"repositories": []}

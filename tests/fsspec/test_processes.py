"""File systems in other processes: pickled, spawned, forked, killed, and at the end of Python."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support import CHECKOUT, faults
from support.faultproxy import BLOB, FaultProxy
from support.fsspec_data import LARGE, TABLE, VOLUME, Maker
from support.registries import EmbeddedRegistry
from support.workers import begin, worker

from epochfs.cache.blobs import BlobCache
from epochfs.config import CacheOptions
from epochfs.fsspec import RegistryFileSystem, open_sessions
from epochfs.oci.names import Digest

CSV, BIN = f"{VOLUME}/train.csv", f"{VOLUME}/deep/er/large.bin"
SECRET = "hunter2-canary"


def read_in_child(fs: RegistryFileSystem, path: str, answers: Any) -> None:
    answers.put((os.getpid(), fs.cat_file(path)))


def in_child(how: str, fs: RegistryFileSystem, path: str) -> bytes:
    """Read a path in a child made so, and see that it ends by itself."""
    context = multiprocessing.get_context(how)
    answers = context.Queue()
    child = context.Process(target=read_in_child, args=(fs, path, answers))
    child.start()
    pid, data = answers.get(timeout=30)
    child.join(10)
    assert (pid, child.exitcode) == (child.pid, 0)
    found: bytes = data
    return found


@pytest.mark.parametrize("how", ["fork", "spawn", "forkserver"])
def test_children_read_before_and_after_their_parent(how: str, fs: RegistryFileSystem) -> None:
    assert in_child(how, fs, CSV) == TABLE
    assert fs.cat_file(CSV) == TABLE
    assert in_child(how, fs, BIN) == LARGE
    assert fs.cat_file(BIN) == LARGE


def test_a_forked_child_leaves_the_connections_and_locks_of_its_parent(
    fs: RegistryFileSystem, registry: EmbeddedRegistry
) -> None:
    with fs.open(BIN, cache_type="none") as file:
        assert file.read(100) == LARGE[:100]
        session = fs.session()
        child = os.fork()
        if child == 0:
            mine = [str(link.readlink()) for link in _descriptors()]
            # Not one that an earlier test has left open.
            cache = f"{session.settings.cache.directory}/v1"
            held = [
                one for one in mine if one.startswith((f"{cache}/mounts/", f"{cache}/partial/"))
            ]
            same = file.read(100) == LARGE[100:200]
            os._exit(0 if same and not held and fs.session() is not session else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert file.read() == LARGE[100:]
    assert fs.session() is session


def _descriptors() -> list[Path]:
    found = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            link.readlink()
        except OSError:
            continue
        found.append(link)
    return found


@pytest.mark.expects_log("was not used")
def test_a_pickle_opens_the_same_and_holds_where_secrets_are(
    open_fs: Maker, registry: EmbeddedRegistry, tmp_path: Path
) -> None:
    (tmp_path / "password").write_text(SECRET)
    fs = open_fs(username="me", password_file=str(tmp_path / "password"))
    fs.cat_file(CSV)
    pickled = pickle.dumps(fs)
    assert SECRET.encode() not in pickled
    assert str(tmp_path / "password").encode() in pickled
    assert pickle.loads(pickled).cat_file(CSV) == TABLE
    assert RegistryFileSystem.from_dict(fs.to_dict()).cat_file(CSV) == TABLE
    with fs.open(BIN) as file:
        file.seek(1000)
        again = pickle.loads(pickle.dumps(file))
    assert again.read(10) == LARGE[1000:1010]
    again.close()


@pytest.mark.parametrize("name", ["password", "token"])
def test_a_secret_itself_is_never_pickled(name: str, open_fs: Maker) -> None:
    given = {"username": "me", "password": SECRET} if name == "password" else {"token": SECRET}
    fs = open_fs(**given)
    with pytest.raises(pickle.PicklingError, match=f"{name}_file") as caught:
        pickle.dumps(fs)
    assert SECRET not in str(caught.value)
    for say in (fs.to_json, fs.to_dict):
        with pytest.raises(ValueError, match=f"{name}_file"):
            say()
        assert SECRET not in str(say(include_password=False))
    assert SECRET not in repr(fs) + repr(fs._options) + str(fs.fsid)


def test_threads_share_one_session(fs: RegistryFileSystem, open_fs: Maker) -> None:
    other = open_fs()
    assert other is not fs
    with ThreadPoolExecutor(4) as pool:
        sessions = set(pool.map(lambda one: one.session(), [fs, other] * 4))
    assert len(sessions) == 1


def test_a_killed_worker_leaves_the_cache_whole(
    registry: EmbeddedRegistry, tmp_path: Path, open_fs: Maker
) -> None:
    cache = BlobCache(CacheOptions(tmp_path / "cache"))
    with FaultProxy(registry.host) as proxy:
        for number in range(4):
            one = worker(proxy.host, tmp_path / "cache", BIN, tmp_path / "got")
            begin([one])
            time.sleep(0.01 * number)
            one.kill()
            one.communicate()
            kept = cache.open(Digest.of(LARGE), len(LARGE))
            if kept is not None:
                assert os.pread(kept, len(LARGE), 0) == LARGE
                os.close(kept)
        assert open_fs(proxy.host).cat_file(BIN) == LARGE


def test_python_ends_while_the_registry_is_silent(
    registry: EmbeddedRegistry, tmp_path: Path
) -> None:
    code = """
import sys, threading, time
from epochfs.fsspec import RegistryFileSystem
fs = RegistryFileSystem(sys.argv[1], cache_dir=sys.argv[2] or None, timeout=60)
fs.info(sys.argv[3])
print("ready", flush=True); sys.stdin.readline()
def read():
    try: fs.cat_file(sys.argv[3])
    except OSError as error: print(error, flush=True)
threading.Thread(target=read, daemon=True).start()
time.sleep(0.5)
"""
    with FaultProxy(registry.host) as proxy:
        for cache in (tmp_path / "cache", ""):
            one = worker(proxy.host, cache, BIN, code=code)
            assert one.stdout is not None
            one.stdout.readline()
            proxy.set(BLOB, faults.silence)
            began = time.monotonic()
            one.communicate("\n", timeout=50)
            assert one.returncode == 0
            assert time.monotonic() - began < 15
            proxy.mend()


def test_python_ends_cleanly_with_files_open(registry: EmbeddedRegistry, tmp_path: Path) -> None:
    code = """
import sys
from epochfs.fsspec import RegistryFileSystem
fs = RegistryFileSystem(sys.argv[1], cache_dir=sys.argv[2])
file = fs.open(sys.argv[3]); file.read(10)
print("ready")
"""
    one = worker(registry.host, tmp_path / "cache", BIN, code=code)
    out, _ = one.communicate(timeout=20)
    assert (out, one.returncode) == ("ready\n", 0)
    assert list((tmp_path / "cache" / "v1" / "mounts").iterdir()) == []


def test_importing_it_opens_nothing_and_takes_no_binding() -> None:
    code = (
        "import sys, epochfs.fsspec; "
        "taken = {'mfusepy', 'fuse', 'requests', 'click', 'tqdm'} & set(sys.modules); "
        "fs = epochfs.fsspec.RegistryFileSystem('127.0.0.1:9'); print(taken)"
    )
    out = subprocess.check_output([sys.executable, "-c", code], cwd=CHECKOUT, text=True)
    assert out == "set()\n"
    opened = code.replace("print(taken)", "fs.exists('/x') if 0 else None") + "; print(1)"
    assert subprocess.check_output([sys.executable, "-c", opened], cwd=CHECKOUT, text=True) == "1\n"


def test_a_closed_session_is_opened_again(fs: RegistryFileSystem) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert fs.cat_file(CSV) == TABLE
    open_sessions.close_idle()
    assert fs.cat_file(CSV) == TABLE
    assert signal.getsignal(signal.SIGTERM) == before

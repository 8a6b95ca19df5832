"""Run the manifests as a node would, with the image's root directory and a registry of samples.

    python scripts/deploy/kubelet.py ROOT

Containers are namespaces of mounts and processes; their volumes propagate mounts as the manifests
say. Called by scripts/deploy/build, as root. Neither a network nor a resource is limited.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from epochfs.demo import samples
from epochfs.demo.registry import EmbeddedRegistry
from epochfs.fuse.mountinfo import parse_mountinfo

MANIFESTS = Path(__file__).parent / "kubernetes"
HELLO = "Hello from a registry that is a directory.\n"
PATH = "/opt/epochfs/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PROPAGATION = {"Bidirectional": "rshared", "HostToContainer": "rslave", None: "rprivate"}
PATIENCE = 60.0

Object = dict[str, Any]


def say(text: str) -> None:
    """Print a line at once: what is run prints, too."""
    sys.stdout.write(f"kubelet: {text}\n")
    sys.stdout.flush()


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for a condition; raises TimeoutError."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.1)


@dataclass
class Container:
    """A running container."""

    spec: Object
    process: subprocess.Popen[str]

    @cached_property
    def pid(self) -> int:
        """Its first process."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        until(lambda: children.read_text(), "a container starts")
        return int(children.read_text().split()[0])

    def executes(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        """Run a command in the container, as `kubectl exec` does."""
        entered = ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--root", "--wd=/"]
        return subprocess.run([*entered, *command], capture_output=True, text=True, check=False)

    def awaits(self, probe: str) -> None:
        """Wait until a probe succeeds."""
        command = self.spec[probe]["exec"]["command"]
        until(lambda: self.executes(command).returncode == 0, shlex.join(command))

    def ends(self, number: int) -> int:
        """Send a signal to the first process and return what the container ends with."""
        os.kill(self.pid, number)
        return self.process.wait(PATIENCE)


class Node:
    """A node with one directory below `state` for each hostPath and emptyDir."""

    def __init__(self, root: Path, state: Path, registry: str) -> None:
        self._root = root
        self._state = state
        self._registry = registry

    def pods(self, name: str) -> list[Object]:
        """Return the pods of a manifest, for the registry of samples."""
        text = (MANIFESTS / name).read_text()
        text = text.replace("https://registry.example.com", self._registry)
        objects = yaml.safe_load_all(text)
        return [one["spec"].get("template", one) for one in objects if one["kind"] != "Namespace"]

    def volume(self, pod: Object, name: str) -> Path:
        """Return where a volume is; a directory of a hostPath must exist if its type says so."""
        [volume] = [one for one in pod["spec"]["volumes"] if one["name"] == name]
        path = self._state / f"pods/{pod['metadata'].get('name', 'daemon')}/{name}"
        if host := volume.get("hostPath"):
            path = self._state / host["path"].lstrip("/")
            if host["type"] == "Directory":
                return path.resolve(strict=True)
        path.mkdir(parents=True, exist_ok=True)
        if "emptyDir" in volume:
            path.chmod(0o777)
        return path

    @contextmanager
    def runs(self, pod: Object, spec: Object, *command: str) -> Iterator[Container]:
        """Run a container, with another command if one is given, and kill what is left of it."""
        words = command or (*spec["command"], *spec.get("args", []))
        arguments = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
        arguments += ["--propagation=unchanged", "sh", "-euc", self._script(pod, spec), "sh"]
        process = subprocess.Popen([*arguments, *words], text=True, stdout=subprocess.PIPE)
        container = Container(spec, process)
        try:
            yield container
        finally:
            if process.poll() is None:  # not by killing unshare: its child has another user
                container.ends(signal.SIGKILL)

    def _script(self, pod: Object, spec: Object) -> str:
        """Return what makes the container's file system and then becomes its command."""
        root, security = shlex.quote(str(self._root)), spec["securityContext"]
        lines = [f"mount --bind {root} {root}", f"mount --make-rprivate {root}", f"cd {root}"]
        for mount in spec["volumeMounts"]:
            place = shlex.quote(mount["mountPath"].lstrip("/"))
            source = shlex.quote(str(self.volume(pod, mount["name"])))
            lines += [f"mkdir -p {place}", f"mount --rbind {source} {place}"]
            lines += [f"mount --make-{PROPAGATION[mount.get('mountPropagation')]} {place}"]
        lines += ["mount -t proc proc proc", "mount -t tmpfs tmpfs dev"]
        devices = ["null", "urandom", *(["fuse"] if security.get("privileged") else [])]
        lines += [f"touch dev/{name}; mount --bind /dev/{name} dev/{name}" for name in devices]
        lines += ["ln -s /proc/self/fd dev/fd"]
        user = security["runAsUser"]
        drop = f"setpriv --reuid={user} --regid={security.get('runAsGroup', user)} --clear-groups"
        if not security.get("privileged"):
            drop += " --no-new-privs --bounding-set=-all --inh-caps=-all"
        variables = [f"{one['name']}={one['value']}" for one in spec.get("env", [])]
        lines += [f'exec chroot . env -i {shlex.join([f"PATH={PATH}", *variables])} {drop} "$@"']
        return "\n".join(lines)

    def mounts(self) -> list[str]:
        """Return what of epochfs is mounted on this node."""
        found = parse_mountinfo(Path("/proc/self/mountinfo").read_text())
        here = (one.path for one in found if one.is_ours and one.path.is_relative_to(self._state))
        return list(map(str, here))


def reads(node: Node, pod: Object) -> None:
    """Run a reader's pod to its end; it must print the sample's text."""
    [spec] = pod["spec"]["containers"]
    with node.runs(pod, spec) as container:
        said, _ = container.process.communicate(timeout=PATIENCE)
        assert (container.process.returncode, said) == (0, HELLO), said
    say(f"{pod['metadata']['name']}: {shlex.join(spec['command'])}: {said.strip()}")


def goes_on(node: Node, pod: Object, mounter: Object, spec: Object, probe: str) -> None:
    """Kill a mounter and start it again: a reader that stays must find the new mount."""
    [reader] = [*pod["spec"]["containers"]]
    with node.runs(pod, reader, "sleep", "1000") as staying:
        with node.runs(mounter, spec) as container:
            container.awaits(probe)
            assert staying.executes(reader["command"]).stdout == HELLO
            container.ends(signal.SIGKILL)
        assert staying.executes(reader["command"]).returncode != 0
        with node.runs(mounter, spec) as container:
            container.awaits(probe)
            until(lambda: staying.executes(reader["command"]).stdout == HELLO, "the next mount")
            say(f"{spec['name']} was killed: the next one serves a reader that stayed")
            code = container.ends(signal.SIGTERM)
    assert code == 0, code
    assert node.mounts() == []
    say(f"{spec['name']} has ended: nothing is mounted")


def try_node(node: Node) -> None:
    """A DaemonSet's mount, by hostPath."""
    [mounter] = node.pods("node.yaml")
    [spec] = mounter["spec"]["containers"]
    whole, pinned = node.pods("pod.yaml")
    with node.runs(mounter, spec) as container:
        container.awaits("readinessProbe")
        say(f"the node has {node.mounts()}")
        reads(node, whole)
        reads(node, pinned)
        assert container.ends(signal.SIGTERM) == 0
    goes_on(node, whole, mounter, spec, "readinessProbe")


def try_sidecar(node: Node) -> None:
    """A sidecar's mount, by emptyDir."""
    [pod] = node.pods("sidecar.yaml")
    [spec] = pod["spec"]["initContainers"]
    with node.runs(pod, spec) as container:
        container.awaits("startupProbe")
        reads(node, pod)
        shown = container.executes(["sh", "-c", "cd /proc; grep -H . [0-9]*/status"]).stdout
        for name in ("Name", "Uid", "CapEff", "CapBnd", "NoNewPrivs"):
            found = [line.split(":", 2)[2].split() for line in shown.splitlines() if name in line]
            say(f"the sidecar's processes, {name}: {[words[0] for words in found]}")
        assert container.ends(signal.SIGTERM) == 0
    goes_on(node, pod, pod, spec, "startupProbe")


def main() -> None:
    """Run each of the manifests."""
    root = Path(sys.argv[1])
    if "--inside" not in sys.argv:
        command = ["unshare", "--mount", "--propagation=private", sys.executable, *sys.argv]
        sys.exit(subprocess.run([*command, "--inside"], check=False).returncode)
    with tempfile.TemporaryDirectory() as state, EmbeddedRegistry() as registry:
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", state], check=True)
        subprocess.run(["mount", "--make-rshared", state], check=True)
        samples.load(registry)
        try:
            node = Node(root, Path(state), registry.url)
            try_node(node)
            try_sidecar(node)
        finally:
            subprocess.run(["umount", "--lazy", state], check=True)


if __name__ == "__main__":
    main()

"""The manifests of scripts/deploy/kubernetes: commands that parse, mounts that propagate."""

from __future__ import annotations

from typing import Any

import pytest
from support import CHECKOUT

from epochfs.cli import mount

yaml = pytest.importorskip("yaml")

DEPLOY = CHECKOUT / "scripts/deploy"
Object = dict[str, Any]


def pods(name: str) -> list[Object]:
    """Return the specs of the pods in a manifest."""
    objects = yaml.safe_load_all((DEPLOY / "kubernetes" / name).read_text())
    wholes = [one["spec"].get("template", one) for one in objects if one["kind"] != "Namespace"]
    return [one["spec"] for one in wholes]


def propagated(container: Object) -> dict[str, str]:
    mounts = container["volumeMounts"]
    return {one["mountPath"]: one.get("mountPropagation", "None") for one in mounts}


def parsed(words: list[str]) -> Object:
    """Return the parameters of an `epochfs mount` command line."""
    assert words[:2] == ["epochfs", "mount"]
    return mount.command.make_context("mount", list(words[2:])).params


[NODE] = pods("node.yaml")
[SIDECAR] = pods("sidecar.yaml")
READERS = [*pods("pod.yaml"), SIDECAR]


def test_the_node_mounts_where_its_pods_look() -> None:
    [container] = NODE["containers"]
    found = parsed(container["args"])
    assert found["foreground"]
    assert found["allow_other"]
    assert found["where"] == ("https://registry.example.com", "/node/registry")
    assert propagated(container)["/node"] == "Bidirectional"
    paths = {one["name"]: one.get("hostPath", {}).get("path") for one in NODE["volumes"]}
    assert paths["node"] == "/var/lib/epochfs"
    for reader in pods("pod.yaml"):
        [volume] = reader["volumes"]
        assert f"{volume['hostPath']['path']}/".startswith(f"{paths['node']}/")


def test_the_sidecar_mounts_by_descriptor_and_is_ready_before_the_others_start() -> None:
    [sidecar] = SIDECAR["initContainers"]
    assert sidecar["restartPolicy"] == "Always"
    assert sidecar["command"] == ["epochfs-fdmount", "--uid", "65532", "/volume/hello"]
    assert parsed(sidecar["args"])["where"][1] == "{}"
    assert "/volume/hello/.epochfs/status.json" in sidecar["startupProbe"]["exec"]["command"]
    assert propagated(sidecar)["/volume"] == "Bidirectional"


@pytest.mark.parametrize("reader", READERS, ids=["whole", "pinned", "with a sidecar"])
def test_a_reader_has_no_privilege_and_sees_mounts_that_are_made_later(reader: Object) -> None:
    [container] = reader["containers"]
    assert set(propagated(container).values()) == {"HostToContainer"}
    security = container["securityContext"]
    assert "privileged" not in security
    assert security["runAsNonRoot"]
    assert security["capabilities"] == {"drop": ["ALL"]}


def test_the_image_is_of_the_user_that_the_sidecar_serves_as() -> None:
    text = (DEPLOY / "Containerfile").read_text()
    assert "USER 65532:65532\n" in text
    assert "scripts/fdmount /usr/local/bin/epochfs-fdmount\n" in text

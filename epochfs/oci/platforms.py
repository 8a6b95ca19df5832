"""Platforms, as image-index.md of the OCI Image specification has them, and which image runs where.

An image runs on a platform of its operating system and architecture. Variants of Arm and of amd64
include the ones before them; the best is taken that the platform includes.
"""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass

from epochfs.errors import InvalidName, printable
from epochfs.oci.manifests import Descriptor, Index

_ARCHITECTURES = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv8l": "arm",
    "armv7l": "arm",
    "armv6l": "arm",
    "i386": "386",
    "i686": "386",
    "loongarch64": "loong64",
}
"""Go's names of architectures, which the specification uses, by the kernel's where they differ."""

_VARIANTS = {"armv7l": "v7", "armv6l": "v6"}
_IMPLIED_VARIANTS = {"amd64": "v1", "arm": "v7", "arm64": "v8"}
_NUMBERED_VARIANT = re.compile(r"v(\d{1,3})\Z")
_WORD = re.compile(r"[a-z0-9_.-]+\Z")


@dataclass(frozen=True, slots=True)
class Platform:
    """An operating system and an architecture in Go's words, such as `linux/arm/v7`."""

    os: str
    architecture: str
    variant: str = ""

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Parse `OS/ARCHITECTURE[/VARIANT]`; raises InvalidName."""
        words = text.lower().split("/")
        if len(words) not in (2, 3) or not all(_WORD.match(word) for word in words):
            raise InvalidName(
                f"not a platform: '{printable(text)}'; expected OS/ARCHITECTURE[/VARIANT], "
                "such as linux/arm64"
            )
        return cls(*words)

    @classmethod
    def of_machine(cls) -> Platform:
        machine = platform.machine().lower()
        architecture = _ARCHITECTURES.get(machine, machine)
        return cls(platform.system().lower(), architecture, _VARIANTS.get(machine, ""))

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))


def platform_of(manifest: Descriptor) -> Platform | None:
    """Return what a manifest of an index runs on; None where it does not tell."""
    stated = manifest.platform or {}
    words = [stated.get(key) or "" for key in ("os", "architecture", "variant")]
    if not all(isinstance(word, str) for word in words) or "" in words[:2]:
        return None
    return Platform(*words) if "unknown" not in words[:2] else None


def choose(index: Index, wanted: Platform) -> Descriptor | None:
    """Return the manifest of an index for a platform; the first of equals, None without one.

    An index of one manifest that names no platform is for all.
    """
    ranked = [
        (rank, -number, manifest)
        for number, manifest in enumerate(index.manifests)
        if (rank := _rank(platform_of(manifest), wanted)) is not None
    ]
    if ranked:
        return max(ranked, key=lambda one: one[:2])[2]
    only = index.manifests[0] if len(index.manifests) == 1 else None
    return only if only is not None and platform_of(only) is None else None


def _rank(offered: Platform | None, wanted: Platform) -> int | None:
    """Return how well what runs on one platform suits another; None where it does not."""
    if offered is None:
        return None
    if (offered.os, offered.architecture) != (wanted.os, wanted.architecture):
        return None
    implied = _IMPLIED_VARIANTS.get(wanted.architecture, "")
    has, wants = offered.variant or implied, wanted.variant or implied
    if has == wants:
        return 1 << 10
    number, limit = _NUMBERED_VARIANT.match(has), _NUMBERED_VARIANT.match(wants)
    if number is None or limit is None or int(number[1]) > int(limit[1]):
        return None
    return int(number[1])

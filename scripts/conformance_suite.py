"""The command line of `scripts/conformance`: runs the built suite, and counts what it says.

    python -m scripts.conformance_suite SUITE

Each time the registry is new. "1.1" is what the specification 1.1 asks for, "dev" what its next
version will, "sparse" the same with manifests that name what was never pushed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from epochfs.demo.registry import Behaviour, EmbeddedRegistry

_RUNS: dict[str, tuple[Behaviour, dict[str, str]]] = {
    "1.1": (Behaviour(), {"OCI_VERSION": "1.1"}),
    "dev": (Behaviour(), {"OCI_VERSION": "dev"}),
    "sparse": (Behaviour(sparse="all"), {"OCI_VERSION": "dev", "OCI_DATA_SPARSE": "true"}),
}


def _run(program: Path, behaviour: Behaviour, variables: dict[str, str]) -> dict[str, int]:
    """Run the suite against a new registry; return how many checks passed, failed, were skipped."""
    with EmbeddedRegistry(behaviour) as registry, tempfile.TemporaryDirectory() as directory:
        settings = {
            "OCI_REGISTRY": registry.url.removeprefix("http://"),
            "OCI_TLS": "disabled",
            "OCI_RESULTS_DIR": f"{directory}/results",
        }
        environment = {**os.environ, **settings, **variables}
        subprocess.run(
            [program], cwd=directory, env=environment, stdout=subprocess.DEVNULL, check=False
        )
        suites = ElementTree.parse(f"{directory}/results/junit.xml").getroot()

    def count(*names: str) -> int:
        return sum(int(suite.get(name, 0)) for suite in suites for name in names)

    failed, skipped = count("failures", "errors"), count("skipped", "disabled")
    return {"pass": count("tests") - failed - skipped, "fail": failed, "skipped": skipped}


def main(program: Path) -> int:
    """Run the suite in every way; return 1 if a check failed."""
    failures = 0
    for name, (behaviour, variables) in _RUNS.items():
        counts = _run(program, behaviour, variables)
        failures += counts["fail"]
        print(f"{name:8}", ", ".join(f"{count} {what}" for what, count in counts.items()))  # noqa: T201
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

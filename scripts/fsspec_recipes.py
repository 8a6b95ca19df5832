"""Runs the recipes of `epochfs help python` as written: `scripts/fsspec-figures recipes`.

A docker-registry with htpasswd holds a table as Parquet and CSV, and a safetensors file; the login
is docker's own file. Each recipe is a block of the page, run in a Python of its own; what it prints
is shown, with the bytes that came from the registry where it says so. Needs docker-registry,
htpasswd (apache2-utils), and the libraries that a recipe imports: a missing one skips it.
"""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from epochfs import help as pages
from scripts.benchmark.programs import Server, free_port

HOST = "reg.example"
"""What the page calls the registry."""

USER, PASSWORD = "reader", "correct horse"
ROWS = 400_000


def recipes() -> Iterator[tuple[str, str]]:
    """Yield the title of each section of the page, with the code in it that is Python."""
    title = ""
    for block in pages.parse(pages.page("python")).blocks:
        if isinstance(block, pages.Heading):
            title = block.text
        elif isinstance(block, pages.Code) and block.lines[0].startswith(("import", "from")):
            yield title, "\n".join(block.lines)


def furnish(base: str) -> None:
    """Push the artifacts that the page reads."""
    import numpy
    import pandas
    from safetensors.numpy import save

    from epochfs.client import RegistryClient
    from epochfs.config import Credentials
    from epochfs.oci.manifests import OCI_MANIFEST
    from epochfs.oci.names import Digest

    random = numpy.random.default_rng(1)
    columns = {f"noise{n}": random.standard_normal(ROWS) for n in range(8)}
    table = pandas.DataFrame({"id": numpy.arange(ROWS), "price": random.random(ROWS), **columns})
    parquet, csv = io.BytesIO(), table[["id", "price"]].head(50_000).to_csv(index=False).encode()
    table.to_parquet(parquet, row_group_size=ROWS // 4)
    files = {"train.parquet": parquet.getvalue(), "train.csv": csv}
    tensors = {"model.safetensors": save({"weight": numpy.eye(64, dtype="float32")})}
    client = RegistryClient(base, credentials=Credentials(USER, PASSWORD))
    for name, held in (("team/data", files), ("team/model", tensors)):
        layers = []
        for title, data in {**held}.items():
            digest = Digest.of(data)
            client.put_blob(name, digest, data, len(data))
            layers.append(
                {
                    "mediaType": "application/octet-stream",
                    "digest": str(digest),
                    "size": len(data),
                    "annotations": {"org.opencontainers.image.title": title},
                }
            )
        client.put_blob(name, Digest.of(b"{}"), b"{}", 2)
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.empty.v1+json",
                "digest": str(Digest.of(b"{}")),
                "size": 2,
            },
            "layers": layers,
        }
        client.put_manifest(name, "v1", json.dumps(manifest).encode(), OCI_MANIFEST)
    client.close()
    sizes = {title: len(data) for title, data in {**files, **tensors}.items()}
    sys.stdout.write(f"pushed: {sizes}\n")


def main() -> int:
    """Run all recipes, or those whose titles have the words given; 1 if one failed."""
    chosen = " ".join(sys.argv[1:]).lower()
    failed = 0
    with ExitStack() as closing:
        scratch = Path(tempfile.mkdtemp(prefix="epochfs-recipes-"))
        closing.callback(shutil.rmtree, scratch, ignore_errors=True)
        port = free_port()
        htpasswd = scratch / "htpasswd"
        subprocess.run(["htpasswd", "-Bbc", str(htpasswd), USER, PASSWORD], check=True, stderr=-3)
        config = scratch / "config.yml"
        config.write_text(
            "version: 0.1\nlog: {level: error}\n"
            f'storage: {{filesystem: {{rootdirectory: "{scratch}/storage"}}}}\n'
            f'http: {{addr: "127.0.0.1:{port}"}}\n'
            f'auth: {{htpasswd: {{realm: registry, path: "{htpasswd}"}}}}\n'
        )
        command = ["docker-registry", "serve", config]
        closing.enter_context(Server(scratch / "log", command)).wait_for_port(port)
        host = f"127.0.0.1:{port}"
        login = scratch / "config.json"
        key = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        login.write_text(json.dumps({"auths": {host: {"auth": key}}}))
        furnish(f"http://{host}")
        for number, (title, code) in enumerate(recipes()):
            if chosen not in title.lower():
                continue
            work = scratch / str(number)
            work.mkdir()
            file = work / "recipe.py"
            file.write_text(code.replace(HOST, host) + "\n")
            environment = {**os.environ, "DOCKER_CONFIG": str(scratch), "HOME": str(work)}
            environment["PYTHONPATH"] = str(Path(__file__).parents[1])
            result = subprocess.run(
                [sys.executable, str(file)],
                cwd=work,
                env=environment,
                capture_output=True,
                text=True,
                timeout=180,
                check=False,
            )
            skipped = "ModuleNotFoundError" in result.stderr
            failed += bool(result.returncode) and not skipped
            said = "skipped" if skipped else "failed" if result.returncode else "ran"
            sys.stdout.write(f"\n== {title}: {said}\n{result.stdout}")
            if result.returncode:
                sys.stdout.write(result.stderr[-3000:])
            sys.stdout.flush()
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())

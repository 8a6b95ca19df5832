"""Puts the man pages into the wheel, so that pip installs them; hatchling runs this."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ManPages(BuildHookInterface):
    """Makes the pages in a directory of its own, which goes when the wheel is made."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Make the pages; a checkout that is installed to be edited has none."""
        self._directory = Path(tempfile.mkdtemp(prefix="epochfs-man-"))
        if version == "editable":
            return
        command = [sys.executable, "-m", "scripts.manpages", str(self._directory)]
        subprocess.run(command, cwd=self.root, check=True)
        for page in sorted(self._directory.iterdir()):
            place = f"share/man/man{page.suffix.removeprefix('.')}/{page.name}"
            build_data["shared_data"][str(page)] = place

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove them again."""
        shutil.rmtree(self._directory)

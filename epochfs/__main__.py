"""`python -m epochfs` is the `epochfs` command."""

import sys

from epochfs.cli import main

sys.exit(main())

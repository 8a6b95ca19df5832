"""The pages that `epochfs help` shows, and that the man pages are made of.

Uses the standard library alone.
Used by `cli`, and by `scripts/man`.
"""

from importlib.resources import files

TOPICS = (
    "tree",
    "semantics",
    "options",
    "registries",
    "credentials",
    "mirrors",
    "backups",
    "cache",
    "performance",
    "troubleshooting",
    "design",
)
"""In the order in which they are listed."""


def page(topic: str) -> str:
    """Return the text of a topic as it is written, in our restricted Markdown (`markdown`)."""
    return files(__name__).joinpath(f"{topic}.md").read_text("utf-8")

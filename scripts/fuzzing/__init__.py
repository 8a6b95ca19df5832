"""Fuzzing of every parser that takes what a registry, or the user's files, may say.

From the bottom up: `target` (what a parser under test is), `targets` (the table of them),
`engine` (one of them under atheris, in a process of its own), `__main__` (all of them in turn).
`tests/unit/test_fuzz.py` runs the same table for a moment, with hypothesis in place of atheris.
"""

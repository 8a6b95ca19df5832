"""The embedded registry, in memory, and its samples: what `epochfs demo` shows and tests break.

Uses `oci` alone.
Used by `cli`, and by the tests in place of a registry that must misbehave.
"""

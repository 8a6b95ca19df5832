"""A registry opened, mounted or not: wiring, settings, probe, status, metrics, prefetch.

Uses every folder below it and knows no command line, so that another front end can open one.
Used by `cli`.
"""

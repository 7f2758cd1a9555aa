"""Tapes: what was on the bus, kept in a file, looked into, and said again."""

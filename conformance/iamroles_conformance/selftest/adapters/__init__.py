"""Agents on other people's SPOP libraries, small enough that what the wire lane finds is the library's doing.

They run in a virtual environment of their own; docs/wire-family.md has the commands. They verify no token:
only the wire lane is played on them.
"""

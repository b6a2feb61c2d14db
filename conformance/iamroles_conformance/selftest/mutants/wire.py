"""Mutants of the wire lane, by the topic of the catalogue."""

from __future__ import annotations

from iamroles_conformance.selftest.mutants import wire_answers, wire_frames, wire_hello, wire_life

__all__ = ["wire_answers", "wire_frames", "wire_hello", "wire_life"]

"""Mutants of rotation under traffic: what is planned costs nobody a request, what is gone opens nothing."""

from __future__ import annotations

from iamroles_agent.tokens.jwks import KeySource
from iamroles_agent.tokens.keys import KeySet
from iamroles_conformance.selftest.mutants.override import around
from iamroles_conformance.selftest.registry import mutant

mutant(
    "fire.newest-key",
    kills=["FIRE-KEY-001"],
    title="refuses the old key as soon as a new one is published",
    apply=around(KeySet, "__init__")(lambda sound, self, keys, dropped=(): sound(self, keys[:1], dropped)),
)


mutant(
    "fire.removed-key",
    kills=["FIRE-KEY-002"],
    title="goes on with keys that were withdrawn while it is busy",
    apply=around(KeySource, "_schedule")(lambda _sound, _self, _delay: None),
)

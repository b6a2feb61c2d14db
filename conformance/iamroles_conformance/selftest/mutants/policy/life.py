"""Mutants of a policy's life and of its traces: RELOAD, TAG, TRAVERSAL, AUDIT-SECRET."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from iamroles_agent.base.reasons import Reason, Refusal
from iamroles_agent.control.reloads import Reloads
from iamroles_agent.policy import paths
from iamroles_agent.policy.compiled import Index, Policy
from iamroles_agent.policy.regions import Region
from iamroles_agent.processes.worker import Worker
from iamroles_agent.serving import gate
from iamroles_agent.serving.gate import Gate
from iamroles_agent.spop import actions
from iamroles_conformance.selftest.mutants.override import around, setting
from iamroles_conformance.selftest.mutants.policy import edits as edit
from iamroles_conformance.selftest.registry import Override, mutant


# --- taking a policy up
@mutant(
    "policy.memory-survives", "RELOAD-ALL-001", "keeps remembered verdicts over a reload", edit.memory_kept
)
@around(Gate, "recall")
def _recall_over_reload(sound: Any, self: Any, key: bytes, context: Any) -> Any:
    self._state.generation = self._state.authenticator.generation  # it grows with a reload too
    return sound(self, key, context)


def _kept(name: str) -> Override:
    """A part of the first policy outlives it."""
    first: list[Any] = []

    def change(policy: Any) -> None:
        first.append(getattr(policy, name))
        setattr(policy, name, first[0])

    return edit.built(change)


mutant("policy.scopes-kept", "RELOAD-ALL-001", "keeps the first policy's scopes")(_kept("_scopes"))
mutant("policy.denies-kept", "RELOAD-ALL-001", "keeps the first policy's denies")(_kept("_denies"))
mutant("policy.lifetimes-kept", "RELOAD-ALL-001", "keeps the first policy's lifetimes")(_kept("_lifetime"))
mutant("policy.mappings-kept", "RELOAD-ALL-001", "keeps the first policy's mappings")(_kept("_name_of"))


def _answered(change: Any) -> Override:
    """Change what is said of each reload; `change` gets its outcome."""
    return around(Reloads, "_report")(lambda sound, self, outcome: sound(self, change(outcome)))


@mutant("policy.bad-replaces-good", "RELOAD-BAD-001", "drops the old policy for a faulty one")
@around(Worker, "_noted")
def bad_replaces_good(sound: Any, self: Any, note: Any) -> None:
    sound(self, note)
    empty = Policy(self.gate.policy.config.model_copy(update={"grants": []}))
    self.gate.replace(empty, self.gate.authenticator)


mutant("policy.takes-faulty", "RELOAD-BAD-001", "says that it took up a faulty policy")(
    _answered(lambda _outcome: {"done": True})
)
mutant("policy.error-says-nothing", "RELOAD-ERROR-001", "does not say what is wrong with a policy")(
    _answered(lambda outcome: outcome if outcome["done"] else {**outcome, "error": "invalid configuration"})
)
_refused: list[Any] = []


def _noticed(outcome: Any) -> Any:
    if not outcome["done"]:
        _refused.append(outcome)
    return outcome


@mutant(
    "policy.deaf-after-refusal", "RELOAD-AGAIN-001", "takes up nothing after a refusal", _answered(_noticed)
)
@around(Reloads, "load")
def _deaf(sound: Any, self: Any) -> None:
    if _refused:
        self._report(_refused[0])
    else:
        sound(self)


mutant("policy.conflict-by-text", "RELOAD-CONFLICT-001", "sees a conflict of equal texts only")(
    around(Region, "meets")(
        lambda sound, self, other: (
            (self.methods, self.hosts, self.sources) == (other.methods, other.hosts, other.sources)
            and sound(self, other)
        )
    )
)
mutant("policy.conflict-too-soon", "RELOAD-CONFLICT-001", "sees a conflict where hosts keep apart")(
    around(Region, "meets")(lambda sound, self, other: sound(replace(self, hosts=None), other))
)

# --- tags
_before: list[Any] = []


@mutant("policy.tags-of-before", "TAG-CLEAR-001", "tags a refusal with the caller before")
@around(gate, "encode_verdict")
def tags_of_before(sound: Any, decision: Any, *rest: Any) -> bytes:
    if decision.allow:
        _before[:] = [decision]
    elif _before:
        last = _before[0]
        decision = replace(decision, principal=last.principal, issuer=last.issuer, backend=last.backend)
    return bytes(sound(decision, *rest))


mutant("policy.tags-not-unset", "TAG-CLEAR-001", "does not unset what an answer leaves out")(
    setting(actions, "unset_var", lambda *_: b""),
    around(actions, "_tag")(lambda sound, name, value: sound(name, value) if value else b""),
)
mutant("policy.tags-cut", "TAG-SAFE-001", "cuts a principal at its first comma")(
    edit.decided(
        lambda _policy, _identity, _request, found: replace(
            found, principal=re.split(r"[,%]", found.principal)[0]
        )
    )
)

# --- paths
mutant("policy.any-path", "TRAVERSAL-REFUSED-001", "judges ambiguous paths as they stand")(
    edit.canonical(lambda _sound, path: path)
)


@mutant("policy.decodes-twice", "TRAVERSAL-REFUSED-001", "decodes a path once more than the proxy")
@edit.canonical
def decodes_twice(sound: Any, path: str) -> str:
    return str(sound(re.sub("%25([0-9A-Fa-f]{2})", r"%\1", path)))


mutant("policy.parameters-pass", "TRAVERSAL-REFUSED-001", "forgets path parameters")(
    edit.canonical(lambda sound, path: sound(re.sub(r";[^/]*", "", path)))
)
mutant("policy.any-bytes", "TRAVERSAL-REFUSED-001", "takes escapes for text whatever bytes they spell")(
    around(paths, "_check_text")(lambda _sound, _path: None)
)
mutant("policy.trims-segments", "TRAVERSAL-REFUSED-001", "trims the blanks of a segment")(
    edit.canonical(lambda sound, path: sound(re.sub("(%20)+(?=/|$)|(?<=/)(%20)+", "", path)))
)


@mutant("policy.refuses-percent", "TRAVERSAL-SAME-001", "refuses every encoded path")
@edit.canonical
def refuses_percent(sound: Any, path: str) -> str:
    if "%" in path:
        raise Refusal(Reason.PATH_AMBIGUOUS, "encoded")
    return str(sound(path))


mutant("policy.serves-denied", "TRAVERSAL-BACKEND-001", "forgets denies where a path was encoded")(
    setting(Index, "first", lambda self, roles, query: None)
)

# --- record
mutant("policy.logs-tokens", "AUDIT-SECRET-001", "writes the token into the audit line")(
    around(gate, "credential_hash")(lambda _sound, credential: credential[-32:])
)

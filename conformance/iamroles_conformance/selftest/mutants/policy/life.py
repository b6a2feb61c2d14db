"""Mutants of a policy's life and of its traces: RELOAD, TAG, TRAVERSAL, AUDIT-SECRET."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from iamroles_agent import gate
from iamroles_agent.application import Application
from iamroles_agent.gate import Gate
from iamroles_agent.policy import compiled
from iamroles_agent.policy.compiled import Index, Policy
from iamroles_agent.policy.regions import Region
from iamroles_agent.reasons import Reason, Refusal
from iamroles_agent.spop import actions
from iamroles_conformance.selftest.mutants.override import override
from iamroles_conformance.selftest.mutants.policy import edits as edit
from iamroles_conformance.selftest.registry import mutant

# --- taking a policy up


@mutant("policy.memory-survives", kills=["RELOAD-ALL-001"], title="keeps remembered verdicts over a reload")
def memory_survives() -> None:
    def make(sound: Any) -> Any:
        def put_in_force(self: Any, policy: Any, authenticator: Any) -> None:
            young = self._state.young
            sound(self, policy, authenticator)
            self._state.young.update(young)

        return put_in_force

    def make_recall(sound: Any) -> Any:
        def recall(self: Any, key: bytes, context: Any) -> Any:
            self._state.generation = self._state.authenticator.generation  # it grows with a reload too
            return sound(self, key, context)

        return recall

    override(Gate, "replace", make)
    override(Gate, "recall", make_recall)


def _kept(name: str) -> None:
    """A part of the first policy outlives it."""
    first: list[Any] = []

    def change(policy: Any) -> None:
        first.append(getattr(policy, name))
        setattr(policy, name, first[0])

    edit.built(change)


@mutant("policy.scopes-kept", kills=["RELOAD-ALL-001"], title="keeps the first policy's scopes")
def scopes_kept() -> None:
    _kept("_scopes")


@mutant("policy.denies-kept", kills=["RELOAD-ALL-001"], title="keeps the first policy's denies")
def denies_kept() -> None:
    _kept("_denies")


@mutant("policy.lifetimes-kept", kills=["RELOAD-ALL-001"], title="keeps the first policy's lifetimes")
def lifetimes_kept() -> None:
    _kept("_lifetime")


@mutant("policy.mappings-kept", kills=["RELOAD-ALL-001"], title="keeps the first policy's mappings")
def mappings_kept() -> None:
    _kept("_name_of")


def _reload(change: Any) -> None:
    def make(sound: Any) -> Any:
        async def reload(self: Any) -> Any:
            return change(self, await sound(self))

        return reload

    override(Application, "reload", make)


@mutant("policy.bad-replaces-good", kills=["RELOAD-BAD-001"], title="drops the old policy for a faulty one")
def bad_replaces_good() -> None:
    def change(application: Any, answer: Any) -> Any:
        if not answer["reloaded"]:
            gate = application.gate
            empty = Policy(gate.policy.config.model_copy(update={"grants": []}))
            gate.replace(empty, gate.authenticator)
        return answer

    _reload(change)


@mutant("policy.takes-faulty", kills=["RELOAD-BAD-001"], title="says that it took up a faulty policy")
def takes_faulty() -> None:
    _reload(lambda _application, answer: {"reloaded": True} if not answer["reloaded"] else answer)


@mutant(
    "policy.error-says-nothing", kills=["RELOAD-ERROR-001"], title="does not say what is wrong with a policy"
)
def error_says_nothing() -> None:
    _reload(
        lambda _application, answer: (
            answer if answer["reloaded"] else {**answer, "error": "invalid configuration"}
        )
    )


@mutant("policy.deaf-after-refusal", kills=["RELOAD-AGAIN-001"], title="takes up nothing after a refusal")
def deaf_after_refusal() -> None:
    def make(sound: Any) -> Any:
        async def reload(self: Any) -> Any:
            answer = getattr(self, "deaf", None) or await sound(self)
            if not answer["reloaded"]:
                self.deaf = answer
            return answer

        return reload

    override(Application, "reload", make)


def _meets(make: Any) -> None:
    override(Region, "meets", make)


@mutant("policy.conflict-by-text", kills=["RELOAD-CONFLICT-001"], title="sees a conflict of equal texts only")
def conflict_by_text() -> None:
    _meets(
        lambda sound: (
            lambda self, other: (
                (self.methods, self.hosts, self.sources) == (other.methods, other.hosts, other.sources)
                and sound(self, other)
            )
        )
    )


@mutant(
    "policy.conflict-too-soon", kills=["RELOAD-CONFLICT-001"], title="sees a conflict where hosts keep apart"
)
def conflict_too_soon() -> None:
    _meets(lambda sound: lambda self, other: sound(replace(self, hosts=None), other))


# --- tags


@mutant("policy.tags-of-before", kills=["TAG-CLEAR-001"], title="tags a refusal with the caller before")
def tags_of_before() -> None:
    before: list[Any] = []

    def make(sound: Any) -> Any:
        def encode(decision: Any) -> bytes:
            if decision.allow:
                before[:] = [decision]
            elif before:
                last = before[0]
                decision = replace(
                    decision, principal=last.principal, issuer=last.issuer, backend=last.backend
                )
            return bytes(sound(decision))

        return encode

    override(gate, "encode_verdict", make)


@mutant("policy.tags-not-unset", kills=["TAG-CLEAR-001"], title="does not unset what an answer leaves out")
def tags_not_unset() -> None:
    actions.unset_var = lambda *_: b""
    override(actions, "_tag", lambda sound: lambda name, value: sound(name, value) if value else b"")


@mutant("policy.tags-cut", kills=["TAG-SAFE-001"], title="cuts a principal at its first comma")
def tags_cut() -> None:
    edit.decided(
        lambda _policy, _identity, _request, found: replace(
            found, principal=re.split(r"[,%]", found.principal)[0]
        )
    )


# --- paths


def _canonical(make: Any) -> None:
    override(gate, "canonical", make)
    override(compiled, "canonical", make)


@mutant("policy.any-path", kills=["TRAVERSAL-REFUSED-001"], title="judges ambiguous paths as they stand")
def any_path() -> None:
    _canonical(lambda _sound: lambda path: path)


@mutant(
    "policy.decodes-twice", kills=["TRAVERSAL-REFUSED-001"], title="decodes a path once more than the proxy"
)
def decodes_twice() -> None:
    def make(sound: Any) -> Any:
        def canonical(path: str) -> str:
            return str(sound(re.sub("%25([0-9A-Fa-f]{2})", r"%\1", path)))

        return canonical

    _canonical(make)


@mutant("policy.parameters-pass", kills=["TRAVERSAL-REFUSED-001"], title="forgets path parameters")
def parameters_pass() -> None:
    _canonical(lambda sound: lambda path: sound(re.sub(r";[^/]*", "", path)))


@mutant("policy.refuses-percent", kills=["TRAVERSAL-SAME-001"], title="refuses every encoded path")
def refuses_percent() -> None:
    def make(sound: Any) -> Any:
        def canonical(path: str) -> str:
            if "%" in path:
                raise Refusal(Reason.PATH_AMBIGUOUS, "encoded")
            return str(sound(path))

        return canonical

    _canonical(make)


@mutant(
    "policy.serves-denied", kills=["TRAVERSAL-BACKEND-001"], title="forgets denies where a path was encoded"
)
def serves_denied() -> None:
    Index.first = lambda self, roles, query: None


# --- record


@mutant("policy.logs-tokens", kills=["AUDIT-SECRET-001"], title="writes the token into the audit line")
def logs_tokens() -> None:
    override(gate, "credential_hash", lambda _sound: lambda credential: credential[-32:])

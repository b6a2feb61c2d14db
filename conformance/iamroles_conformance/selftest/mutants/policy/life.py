"""Mutants of a policy's life and of its traces: RELOAD, TAG, TRAVERSAL, TEXT, AUDIT."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from base64 import urlsafe_b64encode
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from iamroles_agent.base.reasons import Reason, Refusal
from iamroles_agent.commands import serve
from iamroles_agent.control.reloads import Reloads
from iamroles_agent.control.store import Store
from iamroles_agent.policy import paths
from iamroles_agent.policy.compiled import Index, Policy
from iamroles_agent.policy.regions import Region
from iamroles_agent.processes.worker import Worker
from iamroles_agent.serving import gate
from iamroles_agent.serving.gate import Gate
from iamroles_agent.spop import actions, messages
from iamroles_agent.spop.actions import encode_verdict
from iamroles_agent.tokens.authenticator import Authenticator
from iamroles_agent.tokens.sts import StsVerifier
from iamroles_conformance.selftest.mutants import edits as edit
from iamroles_conformance.selftest.mutants.edits import replaced, without
from iamroles_conformance.selftest.mutants.override import after, around, before, fail, rescue, setting
from iamroles_conformance.selftest.registry import Override, mutant

# --- reloads and restarts


@before(Gate, "recall")
def _recall_over_reload(self: Any, _key: bytes, _context: Any) -> None:
    self._state.generation = self.authenticator.generation  # it grows with a reload too


def _kept(name: str) -> Override:
    """Keep a part of the first policy over every reload."""
    first: list[Any] = []

    def change(policy: Any) -> None:
        first.append(getattr(policy, name))
        setattr(policy, name, first[0])

    return edit.built(change)


def _answered(change: Any) -> Override:
    """Change what the agent reports of each reload; `change` gets its outcome."""
    return around(Reloads, "_report")(lambda sound, self, outcome: sound(self, change(outcome)))


@mutant("policy.bad-replaces-good", "RELOAD-BAD-001", "drops the old policy for a faulty one")
@after(Worker, "_noted")
def bad_replaces_good(self: Any, _note: Any) -> None:
    empty = Policy(self.gate.policy.config.model_copy(update={"grants": []}))
    self.gate.replace(empty)


_refused: list[Any] = []


@before(Reloads, "_report")
def _noticed(_self: Any, outcome: Any) -> None:
    if not outcome["done"]:
        _refused.append(outcome)


@mutant("policy.deaf-after-refusal", "RELOAD-AGAIN-001", "takes up nothing after a refusal", _noticed)
@around(Reloads, "load")
def _deaf(sound: Any, self: Any) -> None:
    if _refused:
        self._report(_refused[0])
    else:
        sound(self)


@mutant(
    "policy.first-world-again",
    "RELOAD-RESTART-001",
    "goes back to its first policy when it is restarted",
    around(Store, "read")(lambda *_: None),
)
@Override
def first_policy_again() -> None:
    policy = Path(os.environ["IAMROLES_POLICY"])
    first = policy.with_name(f"first-{policy.name}")
    if first.is_file():
        os.environ["IAMROLES_POLICY"] = str(first)
    else:
        shutil.copyfile(policy, first)


@around(Gate, "judge")
async def _by_the_old(_sound: Any, self: Any, check: Any, context: Any, _key: Any) -> bytes:
    state, asked = self._current(), gate._asked(check, check.path)
    found = state.policy.resources.find(asked)
    decision, _ = await self._decide(state, check, found)
    decision = state.policy.named(found, asked, decision)
    await self._record(self._prepared(check, decision, state), context)
    signs = self.signer is not None and decision.allow
    return encode_verdict(decision, self.signer.sign(decision, self._clock()).token if signs else "")


@around(Authenticator, "authenticate")
async def _read_by_the_old(sound: Any, self: Any, *asked: Any) -> Any:
    former = copy(self)
    try:
        return await sound(former, *asked)
    finally:
        if former._epoch != self._epoch:
            self._cache.clear()


mutant("policy.memory-survives", "RELOAD-ALL-001", "keeps remembered verdicts over a reload")(
    _recall_over_reload, edit.memory_kept
)
mutant("policy.scopes-kept", "RELOAD-ALL-001", "keeps the first policy's scopes")(_kept("_scopes"))
mutant("policy.denies-kept", "RELOAD-ALL-001", "keeps the first policy's denies")(_kept("_denies"))
mutant("policy.lifetimes-kept", "RELOAD-ALL-001", "keeps the first policy's lifetimes")(_kept("_lifetime"))
mutant("policy.mappings-kept", "RELOAD-ALL-001", "keeps the first policy's mappings")(_kept("_name_of"))
mutant("policy.takes-faulty", "RELOAD-BAD-001", "says that it took up a faulty policy")(
    _answered(lambda _outcome: {"done": True})
)
mutant("policy.error-says-nothing", "RELOAD-ERROR-001", "does not say what is wrong with a policy")(
    _answered(lambda outcome: outcome if outcome["done"] else {**outcome, "error": "invalid configuration"})
)
mutant("policy.ends-in-silence", "START-WORLD-001", "ends without a word on what is wrong with its world")(
    around(serve, "end")(lambda sound, code, _message: sound(code, "iamroles agent: cannot start"))
)
mutant("policy.conflict-by-text", "RELOAD-CONFLICT-001", "sees a conflict of equal texts only")(
    around(Region, "meets")(
        lambda sound, self, other, *more: (
            (self.methods, self.hosts, self.sources) == (other.methods, other.hosts, other.sources)
            and sound(self, other, *more)
        )
    )
)
mutant("policy.conflict-too-soon", "RELOAD-CONFLICT-001", "sees a conflict where hosts keep apart")(
    around(Region, "meets")(lambda sound, self, *other: sound(replace(self, hosts=None), *other))
)
mutant("policy.in-flight-by-old", "RELOAD-INFLIGHT-001", "answers a waiting question by the former policy")(
    _by_the_old, _read_by_the_old, setting(Policy, "release", lambda _self: None)
)

# --- tags

_allowed: list[Any] = []


@mutant("policy.tags-of-before", "TAG-CLEAR-001", "tags a refusal with the caller before")
@around(gate, "encode_verdict")
def tags_of_before(sound: Any, decision: Any, *rest: Any) -> bytes:
    if decision.allow:
        _allowed[:] = [decision]
    elif _allowed:
        last = _allowed[0]
        decision = replace(decision, principal=last.principal, issuer=last.issuer, backend=last.backend)
    return bytes(sound(decision, *rest))


_REGEX = "^x[^a-z0-9]+iam([^a-z0-9]|$) -m reg"
mutant("policy.tags-not-unset", "TAG-CLEAR-001", "does not unset what an answer leaves out")(
    setting(actions, "unset_var", lambda *_: b""),
    around(actions, "_tag")(lambda sound, name, value: sound(name, value) if value else b""),
)
mutant("policy.tags-cut", "TAG-SAFE-001", "cuts a principal at its first comma")(
    edit.decided(lambda found, *_: replace(found, principal=re.split(r"[,%]", found.principal)[0]))
)
mutant("policy.strips-dashes-only", "TAG-FORGE-001", "strips only identity headers spelled with dashes")(
    replaced(_REGEX, "x-iam -m beg")
)
mutant("policy.strips-known-only", "TAG-FORGE-001", "strips only the identity headers that it sets itself")(
    replaced(_REGEX, "^x[^a-z0-9]iam[^a-z0-9](role|principal|session|issuer|rule|expires)$ -m reg")
)
mutant("policy.passes-lines", "TAG-FORGE-002", "passes identity headers that came in odd lines")(
    without("del-header ^x[^a-z0-9]+iam")
)
mutant("policy.passes-hop", "TAG-HOP-001", "passes the client's Connection header")(
    without("http-request del-header connection")
)

# --- paths and other texts


def _limits(change: Any) -> Override:
    return setting(messages, "LIMITS", {name: change(limit) for name, limit in messages.LIMITS.items()})


mutant("policy.any-path", "TRAVERSAL-REFUSED-001", "judges ambiguous paths as they stand")(
    edit.canonical(lambda _sound, path: path)
)
mutant("policy.decodes-twice", "TRAVERSAL-REFUSED-001", "decodes a path once more than the proxy")(
    edit.canonical(lambda sound, path: sound(re.sub("%25([0-9A-Fa-f]{2})", r"%\1", path)))
)
mutant("policy.parameters-pass", "TRAVERSAL-REFUSED-001", "forgets path parameters")(
    edit.canonical(lambda sound, path: sound(re.sub(r";[^/]*", "", path)))
)
mutant("policy.any-bytes", "TRAVERSAL-REFUSED-001", "takes escapes for text whatever bytes they spell")(
    around(paths, "_check_text")(lambda _sound, _path: None)
)
mutant("policy.trims-segments", "TRAVERSAL-REFUSED-001", "trims the blanks of a segment")(
    edit.canonical(lambda sound, path: sound(re.sub("(%20)+(?=/|$)|(?<=/)(%20)+", "", path)))
)
mutant("policy.refuses-percent", "TRAVERSAL-SAME-001", "refuses every encoded path")(
    edit.canonical(
        lambda sound, path: fail(Refusal(Reason.PATH_AMBIGUOUS, "encoded")) if "%" in path else sound(path)
    )
)
mutant("policy.serves-denied", "TRAVERSAL-BACKEND-001", "forgets denies where a path was encoded")(
    setting(Index, "first", lambda self, roles, query: None)
)
mutant("policy.forwards-raw", "TRAVERSAL-SAME-001", "forwards the path as it was sent, not as judged")(
    without("http-request normalize-uri")
)
mutant("policy.texts-of-any-length", "TEXT-LIMIT-001", "judges texts of any length")(
    _limits(lambda _: 1 << 20)
)
mutant("policy.texts-cut-short", "TEXT-LIMIT-001", "refuses texts of the longest permitted length")(
    _limits(lambda limit: limit - 1)
)
mutant("policy.slow-on-long-paths", "TEXT-LIMIT-002", "keeps all waiting while it looks at a long path")(
    before(gate, "canonical")(lambda path: time.sleep((len(path) > 100) * len(path) / 8000))
)

# --- the record

_say = partial(print, file=sys.stderr)
mutant("policy.logs-tokens", "AUDIT-SECRET-001", "writes the token into the audit line")(
    around(gate, "credential_hash")(lambda _sound, credential: credential[-32:])
)
mutant("policy.logs-presigned", "AUDIT-SECRET-001", "writes pre-signed requests into the audit line")(
    around(gate, "credential_hash")(
        lambda sound, text: text[-60:] if text.startswith("iam-sts") else sound(text)
    )
)
mutant("policy.logs-strangers", "AUDIT-SECRET-001", "logs the tokens of issuers that it does not know")(
    rescue(Authenticator, "_issuer_of", Refusal)(
        lambda _why, _self, jws: _say(jws.signing_input, urlsafe_b64encode(jws.signature))
    )
)
mutant("policy.logs-sts-urls", "AUDIT-SECRET-001", "logs the URL by which it asks STS")(
    before(StsVerifier, "_identity")(lambda _self, question, _caller: _say(question.url()))
)
_CHALLENGE = ' hdr WWW-Authenticate "%[var(txn.iam_challenge)]" if { var(txn.iam_verdict) -m int 401 }'
mutant("policy.shows-credential", "AUDIT-SECRET-001", "shows the credential on the page of a refusal")(
    replaced(
        f'string "Unauthorized\\n"{_CHALLENGE}', f'lf-string "%[req.fhdr(authorization)]\\n"{_CHALLENGE}'
    )
)
_ASK = "    http-request send-spoe-group iam iam-check-group\n"
mutant("policy.records-credential", "AUDIT-SECRET-001", "writes the credential into HAProxy's record")(
    replaced(_ASK, f"    http-request set-var(txn.iam_said) req.fhdr(authorization)\n{_ASK}"),
    replaced("%[var(txn.iam_remedy)]", "%[var(txn.iam_said),json(utf8s)]"),
)
mutant("policy.log-without-rule", "AUDIT-LOG-001", "does not record which rule decided")(
    replaced("%[var(txn.iam.rule),json(utf8s)]", "-")
)

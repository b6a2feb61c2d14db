"""Mutants of HAProxy's configuration for the policy lane: TAG-FORGE, TAG-HOP, TRAVERSAL-SAME, AUDIT-LOG."""

from __future__ import annotations

from typing import Any

from iamroles_conformance.selftest.mutants.gate.proxy import text, without
from iamroles_conformance.selftest.registry import Override, mutant


def _replaced(old: str, new: str) -> Override:
    def change(text: str) -> Any:
        return text.replace(old, new)

    return text(change)


mutant(
    "policy.strips-dashes-only",
    "TAG-FORGE-001",
    "strips identity headers that are spelled with dashes",
    proxy=True,
)(_replaced("^x[^a-z0-9]iam([^a-z0-9]|$) -m reg", "x-iam -m beg"))
mutant(
    "policy.strips-known-only",
    "TAG-FORGE-001",
    "strips the identity headers that it sets itself, and no others",
    proxy=True,
)(
    _replaced(
        "^x[^a-z0-9]iam([^a-z0-9]|$) -m reg",
        "^x[^a-z0-9]iam[^a-z0-9](role|principal|session|issuer|rule|expires)$ -m reg",
    )
)
mutant("policy.passes-lines", "TAG-FORGE-002", "passes identity headers that came in odd lines", proxy=True)(
    without("del-header ^x[^a-z0-9]iam")
)
mutant("policy.passes-hop", "TAG-HOP-001", "passes the client's Connection header", proxy=True)(
    without("http-request del-header connection")
)
mutant(
    "policy.forwards-raw",
    "TRAVERSAL-SAME-001",
    "forwards the path as it was sent, not as it was judged",
    proxy=True,
)(without("http-request normalize-uri"))
mutant("policy.log-without-rule", "AUDIT-LOG-001", "does not record which rule decided", proxy=True)(
    _replaced("%[var(txn.iam.rule),json(utf8s)]", "-")
)

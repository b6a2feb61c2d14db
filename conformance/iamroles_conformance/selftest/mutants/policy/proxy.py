"""Mutants of HAProxy's configuration for the policy lane: TAG-FORGE, TAG-HOP, TRAVERSAL-SAME, AUDIT-LOG."""

from __future__ import annotations

from typing import Any

from iamroles_conformance.selftest.mutants.gate.proxy import text, without
from iamroles_conformance.selftest.registry import Apply, mutant


def _replaced(old: str, new: str) -> Apply:
    def change(text: str) -> Any:
        return text.replace(old, new)

    return text(change)


mutant(
    "policy.strips-dashes-only",
    kills=["TAG-FORGE-001"],
    title="strips identity headers that are spelled with dashes",
    proxy=True,
    apply=_replaced("^x[^a-z0-9]iam([^a-z0-9]|$) -m reg", "x-iam -m beg"),
)


mutant(
    "policy.strips-known-only",
    kills=["TAG-FORGE-001"],
    title="strips the identity headers that it sets itself, and no others",
    proxy=True,
    apply=_replaced(
        "^x[^a-z0-9]iam([^a-z0-9]|$) -m reg",
        "^x[^a-z0-9]iam[^a-z0-9](role|principal|session|issuer|rule|expires)$ -m reg",
    ),
)


mutant(
    "policy.passes-lines",
    kills=["TAG-FORGE-002"],
    title="passes identity headers that came in odd lines",
    proxy=True,
    apply=without("del-header ^x[^a-z0-9]iam"),
)


mutant(
    "policy.passes-hop",
    kills=["TAG-HOP-001"],
    title="passes the client's Connection header",
    proxy=True,
    apply=without("http-request del-header connection"),
)


mutant(
    "policy.forwards-raw",
    kills=["TRAVERSAL-SAME-001"],
    title="forwards the path as it was sent, not as it was judged",
    proxy=True,
    apply=without("http-request normalize-uri"),
)


mutant(
    "policy.log-without-rule",
    kills=["AUDIT-LOG-001"],
    title="does not record which rule decided",
    proxy=True,
    apply=_replaced("%[var(txn.iam.rule),json(utf8s)]", "-"),
)

"""Mutants of HAProxy's configuration at its edge: hosts, queries, the record, headers of the client."""

from __future__ import annotations

from iamroles_conformance.selftest.mutants.gate.proxy import text, without
from iamroles_conformance.selftest.registry import mutant

mutant(
    "proxy.no-host",
    kills=["PROXY-HOST-001"],
    title="asks and routes a request without a host",
    proxy=True,
    apply=without("str(host_ambiguous)"),
)


mutant(
    "proxy.other-host",
    kills=["PROXY-HOST-002"],
    title="tells the backend a host of its own",
    proxy=True,
    apply=text(
        lambda text: text.replace(
            "    http-request set-uri %[pathq]",
            "    http-request set-header Host internal if !iam_origin_form\n"
            "    http-request set-uri %[pathq]",
        )
    ),
)


mutant(
    "proxy.asterisk-is-root",
    kills=["PROXY-ASTERISK-001"],
    title="takes OPTIONS * for a path that is open",
    proxy=True,
    apply=text(
        lambda text: text.replace(
            "    acl iam_path_rooted path_beg /\n",
            "    http-request set-uri /orders if { url -m str * }\n"
            "    http-request set-method GET if METH_OPTIONS\n"
            "    acl iam_path_rooted path_beg /\n",
        )
    ),
)


mutant(
    "proxy.normalises-query",
    kills=["PROXY-QUERY-001"],
    title="decodes the query together with the path",
    proxy=True,
    apply=without("http-request set-pathq"),
)


mutant(
    "proxy.record-uncut",
    kills=["PROXY-RECORD-001"],
    title="records the client's words whole, so that the line is cut",
    proxy=True,
    apply=text(lambda text: text.replace(",bytes(0,260),", ",").replace(",bytes(0,1024),", ",")),
)


mutant(
    "proxy.records-tokens",
    kills=["PROXY-RECORD-002"],
    title="records a token that stands in the path",
    proxy=True,
    apply=without("'regsub("),
)


mutant(
    "proxy.believes-forwarded",
    kills=["PROXY-SPOKEN-001"],
    title="passes what the client says of itself in another's name",
    proxy=True,
    apply=without("http-request del-header ^(x[^a-z0-9]((http"),
)


mutant(
    "proxy.adds-upgrade",
    kills=["PROXY-UPGRADE-001"],
    title="adds Connection: upgrade to every Upgrade",
    proxy=True,
    apply=text(
        lambda text: text.replace(
            "{ req.hdr_cnt(upgrade) eq 1 } iam_upgrade iam_upgrade_to", "{ req.hdr_cnt(upgrade) eq 1 }"
        )
    ),
)

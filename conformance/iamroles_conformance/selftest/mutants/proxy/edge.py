"""Mutants of HAProxy's configuration at its edge: hosts, queries, the record, headers of the client."""

from __future__ import annotations

from iamroles_conformance.selftest.mutants.gate.proxy import text, without
from iamroles_conformance.selftest.registry import mutant

mutant("proxy.no-host", "PROXY-HOST-001", "asks and routes a request without a host", proxy=True)(
    without("str(host_ambiguous)")
)
mutant("proxy.other-host", "PROXY-HOST-002", "tells the backend a host of its own", proxy=True)(
    text(
        lambda text: text.replace(
            "    http-request set-uri %[pathq]",
            "    http-request set-header Host internal if !iam_origin_form\n"
            "    http-request set-uri %[pathq]",
        )
    )
)
mutant("proxy.asterisk-is-root", "PROXY-ASTERISK-001", "takes OPTIONS * for a path that is open", proxy=True)(
    text(
        lambda text: text.replace(
            "    acl iam_path_rooted path_beg /\n",
            "    http-request set-uri /orders if { url -m str * }\n"
            "    http-request set-method GET if METH_OPTIONS\n"
            "    acl iam_path_rooted path_beg /\n",
        )
    )
)
mutant("proxy.normalises-query", "PROXY-QUERY-001", "decodes the query together with the path", proxy=True)(
    without("http-request set-pathq")
)
mutant(
    "proxy.record-uncut",
    "PROXY-RECORD-001",
    "records the client's words whole, so that the line is cut",
    proxy=True,
)(text(lambda text: text.replace(",bytes(0,260),", ",").replace(",bytes(0,1024),", ",")))
mutant("proxy.records-tokens", "PROXY-RECORD-002", "records a token that stands in the path", proxy=True)(
    without("'regsub(")
)
mutant(
    "proxy.believes-forwarded",
    "PROXY-SPOKEN-001",
    "passes what the client says of itself in another's name",
    proxy=True,
)(without("http-request del-header ^(x[^a-z0-9]((http"))
mutant("proxy.adds-upgrade", "PROXY-UPGRADE-001", "adds Connection: upgrade to every Upgrade", proxy=True)(
    text(
        lambda text: text.replace(
            "{ req.hdr_cnt(upgrade) eq 1 } iam_upgrade iam_upgrade_to", "{ req.hdr_cnt(upgrade) eq 1 }"
        )
    )
)

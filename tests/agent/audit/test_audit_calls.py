"""The record of calls of MCP."""

import tokens_support
from audit_support import records
from policies import document, grant
from tokens_support import ISSUER, READER, claims, mint

from iamroles_agent.base.identity import McpHeaders

URL = "https://mcp.example.com/mcp"
CORP = {"name": "corp", "issuer": ISSUER, "audiences": [URL], "algorithms": ["ES256"]}
OPEN = grant("open", "reader", "POST", "/mcp", hosts=["mcp.example.com"], mcp=[{}])


def test_the_record_names_method_and_decoded_name(tmp_path):
    tools = {"name": "tools", "resource": URL, "validates_headers": True}
    written = document(OPEN, issuers=[CORP], roles=[READER], resources=[tools], scopes=[])
    bench = tokens_support.Bench(written | {"keys": {"refresh": "10d", "max_stale": "10d"}}, tmp_path / "log")
    for method, name in (("tools/call", "=?base64?w7xidW5n?="), ("tools/list", "read"), (None, None)):
        headers = McpHeaders(version="2026-07-28", method=method, name=name)
        bearer = f"Bearer {mint(claims(aud=URL))}"
        bench.answer(authorization=bearer, method="POST", host="mcp.example.com", path="/mcp", mcp=headers)
    bench.audit.close()

    found = [
        (record.get("mcp_method"), record.get("mcp_name"))
        for record in records(tmp_path / "log", kind="decision")
    ]
    assert found == [("tools/call", "übung"), ("tools/list", None), (None, None)]

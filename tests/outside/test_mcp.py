"""The official MCP client, server and conformance scenarios, the gate between them, an issuer beside it."""

import asyncio
import json
import re
import socket
import subprocess
from contextlib import asynccontextmanager
from unittest.mock import AsyncMock

import pytest
from policies import deny, grant
from programs import world
from test_issuer import token_of

from iamroles_scenarios.stage import open_stage
from iamroles_scenarios.stage.reference import reference_agent

METADATA = "/.well-known/oauth-protected-resource/mcp"
REVISION = "2026-07-28"
LOOKS = [{"method": "server/discover"}, {"method": "tools/list"}]
HEADER_MISMATCH = -32020


@pytest.fixture(scope="module")
def gate(issuer):
    """HAProxy and the agent, with a socket before them and another for the MCP server behind them."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    ports = [one.getsockname()[1] for one in sockets]
    url, server = f"http://localhost:{ports[0]}/mcp", f"127.0.0.1:{ports[1]}"
    corp = {"name": "corp", "issuer": issuer, "insecure_http": True, "algorithms": ["ES256"]}
    policy = world(
        issuers=[corp | {"audiences": [url], "scope_claim": "scope"}],
        backends=[{"name": "mcp", "servers": [server], "streams": True}],
        resources=[{"name": "mcp", "resource": url, "validates_headers": True, "insecure_http": True}],
        grants=[grant("R1", "reader", "POST", "/mcp", "mcp", mcp=[{}], hosts=["localhost"])],
        denies=[deny("D1", "*", "/mcp", mcp=[{"name": "wipe"}, {"name": "löschen"}])],
        scopes=[
            {"name": name, "path": "/mcp", "mcp": what} for name, what in (("read", LOOKS), ("call", [{}]))
        ],
    )
    with open_stage("processes") as stage, stage.world(reference_agent(), policy) as made:
        made.url, made.behind, made.sockets = url, f"http://{server}/mcp", sockets
        yield made
    for one in sockets:
        one.close()


@asynccontextmanager
async def serving(gate, ran, token=""):
    """Serve MCP by the official server, and HAProxy at the resource's URL; put the token into requests."""
    import uvicorn
    from mcp.server.mcpserver import MCPServer

    bearer = f"\r\nAuthorization: Bearer {token}\r\nHost:".encode()

    async def pipe(reader, writer):
        while data := await reader.read(65_536):
            writer.write(re.sub(rb"(?i)\r\nhost:", bearer, data) if token else data)
        writer.close()

    async def relay(reader, writer):
        back, there = await asyncio.open_connection(gate.proxy.host, gate.proxy.port)
        await asyncio.gather(pipe(reader, there), pipe(back, writer), return_exceptions=True)

    def tool(name):
        return lambda: ran.append(name)

    server = MCPServer("mcp")
    for name in ("write", "wipe", "löschen"):
        server.tool(name=name)(tool(name))
    app, how = server.streamable_http_app(), {"log_level": "critical", "timeout_graceful_shutdown": 1}
    running = uvicorn.Server(uvicorn.Config(app, **how))
    served = asyncio.create_task(running.serve(sockets=[gate.sockets[1].dup()]))
    async with await asyncio.start_server(relay, sock=gate.sockets[0].dup()):
        yield
    running.should_exit = True
    await served


async def test_a_client_finds_its_way_to_a_token_and_a_call(gate, issuer):
    import httpx2
    import mcp
    from mcp.client.auth.extensions.client_credentials import ClientCredentialsOAuthProvider
    from mcp.client.streamable_http import streamable_http_client
    from mcp.shared.exceptions import MCPError

    ran, seen = [], []

    async def note(answer):
        told = dict(re.findall(r'(\w+)="([^"]*)"', answer.headers.get("www-authenticate", "")))
        seen.append((answer.request.headers.get("mcp-method", answer.url.path), answer.status_code, told))

    storage = AsyncMock(**{"get_tokens.return_value": None, "get_client_info.return_value": None})
    auth = ClientCredentialsOAuthProvider(gate.url, storage, "service", "secret", issuer=issuer)
    async with serving(gate, ran), httpx2.AsyncClient(auth=auth, event_hooks={"response": [note]}) as line:
        async with mcp.Client(streamable_http_client(gate.url, http_client=line)) as client:
            assert len((await client.list_tools()).tools) == 3
            await client.call_tool("write", {})
            for name in ("wipe", "löschen"):
                with pytest.raises(MCPError):
                    await client.call_tool(name, {})
        about = {"protocolVersion": REVISION, "clientCapabilities": {}}
        meta = {f"io.modelcontextprotocol/{name}": value for name, value in about.items()}
        call = {"name": "wipe", "arguments": {}, "_meta": meta}
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}
        said = {"MCP-Protocol-Version": REVISION, "Accept": "application/json, text/event-stream"}
        for names in ({"Mcp-Method": "tools/list"}, {"Mcp-Method": "tools/call", "Mcp-Name": "write"}, {}):
            refused = await line.post(gate.url, json=body, headers=said | names)
            # What `validates_headers` says of a server; without the header, the gate refuses.
            assert not names or refused.json()["error"]["code"] == HEADER_MISMATCH
    hint = {"realm": "iam", "resource_metadata": gate.url[:-4] + METADATA}
    assert ran == ["write"]
    assert seen == [
        ("server/discover", 401, hint | {"scope": "read"}),
        (METADATA, 200, {}),
        ("/.well-known/oauth-authorization-server", 200, {}),
        ("/token", 200, {}),
        ("server/discover", 200, {}),
        ("tools/list", 200, {}),
        ("tools/call", 403, hint | {"error": "insufficient_scope", "scope": "call"}),
        ("/token", 200, {}),
        ("tools/call", 200, {}),
        ("tools/call", 403, hint),
        ("tools/call", 403, hint),
        ("tools/list", 400, {}),
        ("tools/call", 400, {}),
        ("/mcp", 400, hint | {"error": "invalid_request"}),
    ]


async def conform(url, place, results):
    """Play the scenarios that a server of this revision must pass; return the status of each check."""
    program = "node_modules/@modelcontextprotocol/conformance/dist/index.js"
    words = [program, "server", "--url", url, "--requirements", REVISION, "-o", results]
    node = await asyncio.create_subprocess_exec(place / "node", *words, cwd=place, stdout=subprocess.DEVNULL)
    await node.wait()
    found = {path.parent.name[:-25]: json.loads(path.read_text()) for path in results.rglob("checks.json")}
    return {(name, check["id"]): check["status"] for name in found for check in found[name]}


def test_the_gate_changes_one_scenario_of_the_official_conformance(gate, issuer, place, tmp_path):
    async def both():
        async with serving(gate, [], token_of(issuer, resource=gate.url, scope="read call")):
            urls = (gate.behind, gate.url)
            return [await conform(url, place, tmp_path / str(number)) for number, url in enumerate(urls)]

    with asyncio.Runner() as runner:
        direct, through = runner.run(both())
    passed = {check for check, status in direct.items() if status == "SUCCESS"}
    assert len(passed) > 90
    unsupported = "server-server-stateless", "sep-2575-server-unsupported-version-error"
    assert {check for check in passed if through.get(check) != "SUCCESS"} == {unsupported}

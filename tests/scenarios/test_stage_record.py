"""No credential in the record of real HAProxy, whatever its kind, wherever a client puts it."""

import json
import re
from pathlib import Path

import puppet_gate
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from misplaced import misplaced
from puppet_gate import connect, raw, record

ROOT = Path(__file__).parents[2]
world = puppet_gate.world
WHERE = {
    "path": lambda text: {"target": f"/orders/{text}"},
    "refused path": lambda text: {"target": f"/orders//{text}"},
    "query": lambda text: {"target": f"/orders/1?access_token={text}"},
    "absolute target": lambda text: {"target": f"http://api.example/{text}"},
    "host": lambda text: {"host": text},
    "host and target": lambda text: {"target": f"http://{text}/orders", "host": text},
    "method": lambda text: {"method": text},
    "role": lambda text: {"headers": [f"X-IAM-Role: {text}"]},
    "authorization": lambda text: {"headers": [f"Authorization: Bearer {text}"]},
    "cookie": lambda text: {"headers": [f"Cookie: session={text}"]},
}


def recorded(world, request):
    """Send a request; return HAProxy's record of it, whatever became of it."""
    with connect(world) as connection:
        port = connection.getsockname()[1]
        connection.sendall(request)
        connection.makefile("rb").readline()
    found = record(world, client_port=port)
    assert found is not None
    return found


@given(one=misplaced(), where=st.sampled_from(sorted(WHERE)))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_run_of_a_credential_is_on_record(world, one, where):
    assert not one.shown_by(json.dumps(recorded(world, raw(**WHERE[where](one.text)))))


def test_what_a_stranger_fills_is_what_docs_say(world):
    """A line of the record, with the client's port as long as most are."""
    found = recorded(world, b"GET / HTTP/1.1\r\nHost: ab.example\r\n\r\n")
    line = json.dumps(found, separators=(",", ":"), ensure_ascii=False)

    page = " ".join((ROOT / "docs" / "haproxy.md").read_text().split())
    said = int(re.search(r"A request of 36 bytes .* leaves a line of (\d+) bytes", page)[1])
    assert abs(len(line) + 1 - said) < 24, line

"""HAProxy and its record say why a stream is refused or ended, and what would help."""

import http.client
from contextlib import ExitStack, closing

import pytest
from gate_bench import gate_bench
from waiting import until

from iamroles_scenarios.checks.live.stream import Stream, StreamShape

PATIENCE = 30.0


@pytest.fixture(scope="module")
def here(stage):
    with gate_bench(stage, "record") as found:
        yield found


def logged(haproxy, since, path):
    """HAProxy's records of a path, once there are any: a stream of the test before may end late."""
    return until(lambda: [one for one in haproxy.log_lines(since) if one["path"] == path], PATIENCE)


def refused(here, stack, shape, path):
    """A stream's status, and its record."""
    haproxy = here.world.haproxy
    since = haproxy.log_mark
    stream = stack.enter_context(closing(Stream(here, shape, path, here.token(exp="+15m"))))
    status = stream.answered(PATIENCE)
    [record, *_] = logged(haproxy, since, path)
    return status, record["reason"], record["remedy"]


@pytest.mark.parametrize(("kind", "what"), [("websocket", "upgrades"), ("events", "event streams")])
def test_where_streams_may_not_live_the_remedy_is_told(here, kind, what):
    with ExitStack() as stack:
        said = refused(here, stack, StreamShape(kind), "/plain/a")

    assert said == (403, "streams_off", f"{what} need streams = true in backend plain of the policy")


@pytest.mark.parametrize(
    ("kind", "expire"), [("upload", "5s"), ("download", "5s"), ("websocket", "5s"), ("download", "1s")]
)
def test_a_stream_without_room_for_its_entry_is_refused(here, kind, expire):
    haproxy = here.world.haproxy
    haproxy._files["haproxy.cfg"] = haproxy._files["haproxy.cfg"].replace(
        f"len 2600 size 100k expire {expire}", f"len 2600 size 1 expire {expire}"
    )
    haproxy.reload()
    with ExitStack() as stack:
        first = stack.enter_context(
            closing(Stream(here, StreamShape("websocket"), "/live/reader", here.token()))
        )
        assert first.opened(PATIENCE), first.status

        said = refused(here, stack, StreamShape(kind), "/live/reader")

    assert said == (503, "streams_full", "-")


def test_a_credential_that_ends_while_its_request_waits_for_the_server_is_told(here):
    haproxy, proxy = here.world.haproxy, here.world.proxy
    since = haproxy.log_mark
    with closing(http.client.HTTPConnection(proxy.host, proxy.port, timeout=PATIENCE)) as client:
        authorization = f"Bearer {here.token(exp='+5s')}"
        client.request("GET", "/plain/a?after=20000", headers={"Authorization": authorization})
        answer = client.getresponse()
        body = answer.read()

    assert (answer.status, body) == (401, b"No answer in time\n")
    assert 'error="invalid_token"' in answer.headers["WWW-Authenticate"]
    assert [(one["verdict"], one["ended"][:2]) for one in logged(haproxy, since, "/plain/a")] == [
        ("200", "sH")
    ]

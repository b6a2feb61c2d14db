"""What HAProxy's record says of streams that are refused: why, and what would help."""

import time
from contextlib import ExitStack, closing

import pytest

from iamroles_scenarios.checks.live.stream import Shape, Stream
from iamroles_scenarios.engine.bench import bench
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.engine.worlds import Worlds
from iamroles_scenarios.reference import reference_agent
from iamroles_scenarios.stage import open_stage

PATIENCE = 30.0


@pytest.fixture(scope="module")
def here():
    agent = reference_agent()
    with (
        open_stage("processes") as stage,
        closing(Worlds(stage, agent, namespace="-record")) as worlds,
        bench(Target("gate", stage, agent, worlds, 5.0), "live", "record", own=True) as found,
    ):
        yield found


def refused(here, stack, shape, path):
    """A stream's status, and its record."""
    haproxy = here.world.haproxy
    since = haproxy.log_mark
    stream = stack.enter_context(closing(Stream(here, shape, path, here.token(exp="+15m"))))
    status = stream.answered(PATIENCE)
    deadline = time.monotonic() + PATIENCE
    while not (records := haproxy.log_lines(since)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return status, records[0]["reason"], records[0]["remedy"]


@pytest.mark.parametrize(("kind", "what"), [("websocket", "upgrades"), ("events", "event streams")])
def test_where_streams_may_not_live_the_remedy_is_told(here, kind, what):
    with ExitStack() as stack:
        said = refused(here, stack, Shape(kind), "/plain/a")

    assert said == (403, "streams_off", f"{what} need streams = true in backend plain of the policy")


@pytest.mark.parametrize("kind", ["upload", "download", "websocket"])
def test_a_stream_without_room_for_its_entry_is_refused(here, kind):
    haproxy = here.world.haproxy
    haproxy._files["haproxy.cfg"] = haproxy._files["haproxy.cfg"].replace(
        "len 2600 size 100k", "len 2600 size 1"
    )
    haproxy.reload()
    with ExitStack() as stack:
        first = stack.enter_context(closing(Stream(here, Shape("websocket"), "/live/reader", here.token())))
        assert first.opened(PATIENCE), first.status

        said = refused(here, stack, Shape(kind), "/live/reader")

    assert said == (503, "streams_full", "-")

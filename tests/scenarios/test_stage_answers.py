"""What a request is while it waits for its answer, and what may become of the answer, on every HAProxy."""

import re
import time
from concurrent.futures import ThreadPoolExecutor

import puppet_gate
import pytest
from puppet_gate import YES, ask, h2
from waiting import until

world = puppet_gate.world


def waiting(world):
    """Return the rows of `iam-wait` by key: how many streams use each, and its end."""
    rows = re.findall(r" key=(\S+) use=(\d+) .*gpt0=(\d+)", world.haproxy.runtime("show table iam-wait"))
    return {key.replace("\\", ""): (int(use), int(end)) for key, use, end in rows}


@pytest.mark.parametrize("client", [ask, h2])
def test_a_request_that_waits_is_in_the_list_exactly_as_long_as_it_waits(world, client):
    yes = {**YES, "ticket": f"who.{client.__name__}"}
    with ThreadPoolExecutor(1) as pool:
        began = time.monotonic()
        # Longer than the table keeps a row that is not used.
        answer = pool.submit(client, world, "/wait?after=2500", yes)
        [key] = until(lambda: [key for key in waiting(world) if key.endswith(f"|{yes['ticket']}")])
        assert f" id={key.partition('|')[0]} " in world.haproxy.runtime("show sess all")
        until(lambda: waiting(world).get(key) != (1, YES["expires"]))
        assert time.monotonic() - began >= 2.5
        assert getattr(answer.result(), "status", answer.result()) == 200
    assert waiting(world).get(key, (0,))[0] == 0


def test_a_request_without_a_ticket_is_in_the_list_too(world):
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, world, "/wait?after=500")
        until(lambda: [key for key, (use, _) in waiting(world).items() if key.endswith(("|", "|-")) and use])
        assert answer.result().status == 200

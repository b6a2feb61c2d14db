"""A worker's questions to the fetcher about keys and STS: shared, and bounded for each source."""

import asyncio

import pytest
from spop_client import until
from sts_support import ARN, EDGE, GOOD, HOST, KEY_ID, credential, outcome, playing, presign
from tokens_support import NOW, Clock, issuer

from iamroles_agent.base.config import KeySettings, Sts
from iamroles_agent.base.identity import Identity
from iamroles_agent.control.document import Document
from iamroles_agent.processes.link import LinkLost
from iamroles_agent.processes.remote import Remote, answer_sts
from iamroles_agent.tokens import sts
from iamroles_agent.tokens.admission import Callers

SOUND = {
    "identity": Identity("sts", ARN, "me", (), NOW + 900, key_id=KEY_ID)._asdict() | {"roles": []},
    "reusable": True,
}


class Link:
    """A link whose fetcher answers when a test says so, and a sound key at once."""

    def __init__(self):
        self.asked, self.release, self.pause = [], asyncio.Event(), 59.0
        self.document = Document(1)

    async def ask(self, _topic, body):
        self.asked.append(body["source"])
        if body["source"] == "sound":
            return SOUND
        await self.release.wait()
        if body["source"] == "lost":
            raise LinkLost("the parent is gone")
        return {"reason": "sts_rejected", "detail": "", "pause": self.pause}


def prover(link, remote=None, former=None, **more):
    entry = Sts(name="sts", endpoint="https://sts.test", hosts=[HOST], binding_value=EDGE, **more)
    return (remote or Remote(link, Clock())).prover([entry], former)


def forged(asked, source, count, first=0):
    urls = [GOOD.replace(KEY_ID, f"AKIA{n:016d}") for n in range(first, first + count)]
    return [asyncio.create_task(outcome(asked, credential(url), source)) for url in urls]


@pytest.mark.parametrize(("once", "questions"), [(False, 1), (True, 5)])
async def test_equal_questions_share_an_answer_unless_each_counts_once(once, questions):
    asked = prover(link := Link(), replay_cache=once)
    waiting = [asyncio.create_task(outcome(asked, credential(GOOD), "a")) for _ in range(5)]
    await until(lambda: len(link.asked) == questions)

    link.release.set()

    assert set(await asyncio.gather(*waiting)) == {"sts_rejected"}
    assert len(link.asked) == questions


@pytest.mark.parametrize(("version", "seconds", "questions"), [(1, 30.0, 1), (2, 30.0, 3), (1, 0.0, 3)])
async def test_a_rejected_credential_is_refused_as_long_as_the_fetcher_would_refuse_it(
    monkeypatch, version, seconds, questions
):
    """Not if the fetcher judged by another policy than the worker."""
    monkeypatch.setattr(sts, "_REJECTED_FOR", seconds)
    asked, forged = prover(link := Link()), credential(presign(secret="another"))
    with playing() as (_, agent):

        async def ask(_topic, body):
            link.asked.append(body["source"])
            return await answer_sts(agent.sts, body) | {"version": version}

        link.ask = ask
        for _ in range(3):
            assert await outcome(asked, forged, "a") == "sts_rejected"
        assert len(link.asked) == questions
        assert await outcome(asked, credential(GOOD), "a") == ""


async def test_a_flood_from_one_source_stays_in_the_worker():
    """The fetcher gets a few of its questions at a time; a caller elsewhere does not wait for one of them."""
    asked = prover(link := Link())
    flood = forged(asked, "flood", 400)
    await until(lambda: sum(task.done() for task in flood) == 400 - 8 - 64)

    assert link.asked == ["flood"] * 8
    assert await outcome(asked, credential(GOOD), "sound") == ""
    link.release.set()
    assert sorted(set(await asyncio.gather(*flood))) == ["sts_rejected", "sts_unavailable"]
    assert link.asked.count("flood") == 8 + 64
    assert asked._flights._flights == {}


@pytest.mark.parametrize("elsewhere", [False, True], ids=["after-a-reload", "in-another-worker"])
async def test_a_known_key_has_room_beside_floods_from_everywhere(elsewhere):
    """He once was a stranger to the next worker, and waited two seconds there behind a flood."""
    link, callers = Link(), Callers()
    remote = Remote(link, Clock(), callers)
    assert await outcome(prover(link, remote), credential(GOOD), "sound") == ""
    asked = prover(link, Remote(link, Clock(), callers) if elsewhere else remote)
    flood = [task for n in range(50) for task in forged(asked, f"flood-{n}", 16, 16 * n)]
    await until(lambda: len(link.asked) == 1 + 64 - 16)

    assert await outcome(asked, credential(presign(now=NOW - 1)), "sound") == ""
    link.release.set()
    await asyncio.gather(*flood)


async def test_who_is_known_at_an_endpoint_is_a_stranger_at_another_url_of_its_name():
    remote = Remote(link := Link(), Clock())
    assert await outcome(prover(link, remote), credential(GOOD), "sound") == ""

    def knows(url):
        other = Sts(name="sts", endpoint=url, hosts=[HOST], binding_value=EDGE)
        return remote.prover([other], None)._queues["sts"].admission.knows(KEY_ID, "sound")

    assert (knows("https://sts.test"), knows("https://other.test")) == (True, False)


async def test_questions_under_way_outlive_a_reload_and_a_lost_parent():
    link = Link()
    remote = Remote(link, Clock())
    first = asyncio.create_task(outcome(prover(link, remote), credential(GOOD), "lost"))
    await until(lambda: link.asked == ["lost"])
    second = asyncio.create_task(outcome(prover(link, remote), credential(GOOD), "a"))
    await until(lambda: len(link.asked) == 2)
    link.release.set()

    assert await asyncio.gather(first, second) == ["sts_unavailable", "sts_rejected"]


async def test_a_shorter_cooldown_ends_the_pause_before_it_and_bounds_the_next():
    (link := Link()).release.set()
    ring = Remote(link).keyring(issuer(), KeySettings(), print, clock := Clock())
    ring.stale = bool
    for cooldown, asked in (("1m", 1), ("1s", 3)):
        ring.configure(issuer(), KeySettings(cooldown=cooldown))
        for seconds in (1, 2):
            clock.now += seconds
            await ring.want("new")
        assert len(link.asked) == asked


async def test_an_issuer_that_hangs_holds_few_questions_of_a_worker():
    ring = Remote(link := Link()).keyring(issuer(), KeySettings(), print, Clock())
    waiting = [asyncio.create_task(ring.want(f"first-{n}")) for n in range(100)]
    await until(lambda: len(link.asked) == 1)
    ring.stale = bool
    waiting += [asyncio.create_task(ring.want(f"k{n % 100}")) for n in range(200)]
    await until(lambda: len(link.asked) == 32)
    await asyncio.sleep(0)
    assert len(link.asked) == 32

    link.release.set()
    await asyncio.gather(*waiting)
    assert len(link.asked) == 32  # the others heard of the pause


async def test_an_answer_in_the_moment_in_which_another_kid_comes_does_not_stop_the_worker():
    """That caller once joined an ended question, and again, and never let the event loop turn."""
    looks = iter(range(200))
    ring = Remote(link := Link()).keyring(issuer(), KeySettings(), print, lambda: float(next(looks)))
    ring.stale, link.pause = bool, 0.0
    waiting = [asyncio.create_task(ring.want(f"k{n}")) for n in range(32)]
    await until(lambda: len(link.asked) == 32)

    link.release.set()
    await asyncio.gather(*waiting, *(asyncio.create_task(ring.want(f"late-{n}")) for n in range(3)))
    assert len(link.asked) == 35


async def test_the_end_of_a_worker_ends_its_questions():
    asked = prover(link := Link())
    waiting = forged(asked, "a", 20)
    await until(lambda: len(link.asked) == 8)

    await asked.close()

    assert set(await asyncio.gather(*waiting)) == {"sts_unavailable"}

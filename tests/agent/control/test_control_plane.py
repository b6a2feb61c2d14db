"""The control plane as transcripts: each fault is an event, each answer an effect, time is a number.

The numbers in the names are those of the faults that each was written for: a worker that comes back with an
old policy, a reload that is half done, a member that never answers, a member that talks nonsense.
"""

import random

import pytest
from control_bench import THREE, TWO, Bench, without

from iamroles_agent.control.document import POLICY, Part
from iamroles_agent.control.slots import FETCHER, LOADER, Life, Scheduled, Timing

KEYS = Part.of((b"{}",), digest="keys", stamp=990.0)


@pytest.fixture
def bench():
    return Bench(2).up()


@pytest.fixture
def alone():
    """A plane of one worker."""
    return Bench(1).up()


def test_from_the_first_fork_to_the_ready_line():
    bench = Bench(2)
    bench.plane.start()

    assert bench.did() == ["fork fetcher", "fork 0", "fork 1"]
    assert bench.hears(0, "up", version=1) == ["0 < serve"]
    assert bench.hears(0, "serving") == []
    assert bench.hears(FETCHER, "up", version=1) == []
    assert bench.hears(1, "up", version=1) == ["1 < serve"]
    assert bench.hears(1, "serving") == ["say {'ready': True}"]


def test_an_agent_that_is_stopped_before_all_serve_is_not_ready():
    """Else it tells the agent that it takes over from to end, and ends too."""
    bench = Bench(1)
    bench.plane.start()
    bench.did()
    bench.hears(FETCHER, "up", version=1)
    assert bench.hears(0, "up", version=1) == ["0 < serve"]
    bench.plane.stop()
    assert bench.hears(0, "serving") == ["fetcher < note", "0 < drain"]


def test_a_member_that_cannot_start_ends_the_start():
    bench = Bench(2)
    bench.plane.start()
    bench.did()
    bench.hears(1, "failed", error="the port is busy")

    assert bench.dies(1, "status 3")[-1] == "fail: the port is busy"
    assert bench.passes(1.0) == []


def test_a_reload_is_prepared_by_all_then_in_force_everywhere_then_told(bench):
    assert without(bench.loads(TWO), "piece") == [
        "fork loader", "fetcher < prepare 2", "0 < prepare 2", "1 < prepare 2",
    ]  # fmt: skip
    assert bench.hears(0, "prepared", version=2) == []
    assert bench.hears(FETCHER, "prepared", version=2) == []
    assert bench.plane.document.version == 1
    assert bench.hears(1, "prepared", version=2) == ["fetcher < switch 2", "0 < switch 2", "1 < switch 2"]
    assert bench.plane.document.version == 2
    assert bench.all_say("switched", 2, but=(FETCHER,)) == []
    line = "say {'reloaded': True, 'policy': 'two', 'version': 2, 'workers': 2, 'confirmed': 2}"
    assert bench.hears(FETCHER, "switched", version=2) == [line]
    pieces = [said.body for place, said in bench.sent if place == 0 and said.say == "piece"]
    assert pieces == [b"t", b"wo"], "they arrive whole and in order"
    assert bench.loads(TWO)[-1] == line, "the same content is confirmed without a new version"


def test_pings_say_whether_a_worker_still_answers_by_what_was_in_force_before(bench):
    def behind():
        bench.passes(0.25)
        return [said.head["summary"]["behind"] for _, said in bench.sent if said.say == "ping"][-1]

    bench.loads(TWO)
    bench.all_say("prepared", 2)
    bench.all_say("switched", 2, but=(1,))
    assert behind()
    bench.hears(1, "switched", version=2)
    assert not behind()


@pytest.mark.parametrize("workers", [1, 4])
def test_a_replacement_is_born_with_the_version_in_force(workers):
    bench = Bench(workers).up()
    bench.loads(TWO)
    bench.confirmed(2)
    for index in range(workers):
        bench.dies(index)
    bench.passes(0.25)

    for place in bench.plane.members.workers:
        assert (place.life, place.version, place.document.policy) == (Life.BORN, 2, "two")
        assert bench.comes_up(place.index)[0] == f"{place.index} < serve"
    assert bench.plane.changes.confirmed == workers


def test_a_member_that_dies_again_and_again_is_replaced_within_ten_seconds(bench):
    """SPEC.md 10.10. A longer pause before each fork would cost a worker for minutes."""
    for _ in range(12):
        bench.dies(0)
        assert any(line.startswith("fork 0") for line in bench.passes(9.0))


def test_a_worker_that_refuses_ends_the_reload_and_nothing_changes(bench):
    """All or nobody."""
    bench.loads(TWO)
    bench.hears(0, "prepared", version=2)

    assert bench.hears(1, "refused", version=2, error="no") == [
        "fetcher < abort 2", "0 < abort 2", "1 < abort 2",
        "say {'reloaded': False, 'policy': 'one', 'error': 'no', 'version': 1}",
        "0 < note", "1 < note",
    ]  # fmt: skip
    assert bench.plane.document.policy == "one"


def test_a_late_answer_to_a_reload_that_was_given_up_does_not_count_for_the_next(bench):
    bench.loads(TWO)
    bench.hears(0, "refused", version=2, error="no")
    bench.loads(THREE)

    assert bench.hears(1, "prepared", version=2) == []
    bench.all_say("prepared", 3, but=(1,))
    assert bench.plane.document.version == 1
    assert "1 < switch 3" in bench.hears(1, "prepared", version=3)


def test_who_does_not_prepare_in_time_is_replaced_with_the_new_version(bench):
    bench.loads(TWO)
    bench.all_say("prepared", 2, but=(1,))

    lines = bench.passes(5.5)
    assert lines == [
        "kill 1: it did not prepare version 2 in 5.0 s", "fetcher < switch 2", "0 < switch 2",
    ]  # fmt: skip
    bench.all_say("switched", 2, but=(1,))
    said = "say {'reloaded': True, 'policy': 'two', 'version': 2, 'workers': 2, 'confirmed': 2}"
    assert said in bench.replaced(1)


def test_where_no_worker_prepares_in_time_nobody_is_killed_and_the_reload_fails():
    bench = Bench(3).up()
    bench.loads(TWO)
    bench.hears(FETCHER, "prepared", version=2)

    (line,) = without(bench.passes(6.0), "abort", "note")
    assert "'reloaded': False" in line
    assert "'error': 'no worker prepared it within 5.0 s'" in line
    assert bench.plane.changes.confirmed == 3


def test_who_does_not_switch_in_time_is_killed_and_the_outcome_waits_for_its_replacement(bench):
    """After the commit it still enforces the version before."""
    bench.loads(TWO)
    bench.all_say("prepared", 2)
    bench.all_say("switched", 2, but=(0, 1))
    bench.hears(1, "switched", version=2)

    assert bench.passes(2.5) == ["kill 0: it did not switch version 2 in 2.0 s"]
    assert bench.replaced(0)[-1].startswith("say {'reloaded': True")


def test_an_outcome_that_waited_long_enough_tells_how_many_have_confirmed(bench):
    bench.loads(TWO)
    bench.all_say("prepared", 2)
    bench.dies(0)
    bench.all_say("switched", 2, but=(0,))

    assert "'workers': 2, 'confirmed': 1" in bench.passes(4.0, but=(0,))[-1]


@pytest.mark.parametrize(("index", "name", "then"), [(0, "0", "serve"), (FETCHER, "fetcher", "ask sts 1")])
def test_a_newborn_that_is_behind_a_commit_does_not_serve_before_it_has_caught_up(bench, index, name, then):
    bench.gone(index)
    bench.loads(TWO)
    for step in ("prepared", "switched"):
        bench.all_say(step, 2, but=(index,))
    if index == FETCHER:
        assert bench.hears(0, "ask", id=7, topic="sts", body={}) == []

    assert without(bench.hears(index, "up", version=1), "piece") == [f"{name} < prepare 2"]
    assert bench.hears(index, "prepared", version=2) == [f"{name} < switch 2"]
    assert bench.hears(index, "switched", version=2) == [f"{name} < {then}"]


def test_a_newborn_in_the_middle_of_a_change_joins_it(bench):
    bench.gone(0)
    bench.loads(TWO)

    assert without(bench.hears(0, "up", version=1), "piece") == ["0 < serve", "0 < prepare 2"]
    bench.all_say("prepared", 2, but=(0,))
    assert bench.plane.document.version == 1
    assert "0 < switch 2" in bench.hears(0, "prepared", version=2)


@pytest.mark.parametrize("workers", [1, 4])
def test_a_silent_worker_is_replaced_within_two_seconds(workers):
    bench = Bench(workers).up()
    began = bench.now
    lines: list[str] = []
    while not lines:
        lines = bench.passes(0.25, but=(0,))

    assert lines == ["kill 0: no heartbeat for 1.2 s"]
    assert bench.now - began < 1.5
    bench.dies(0)
    assert bench.passes(0.25) == ["fork 0: no heartbeat for 1.2 s"]


def test_silent_members_are_replaced_one_at_a_time():
    bench = Bench(3).up()
    silent = (0, 1, 2)

    assert bench.passes(3.0, but=silent) == ["kill 0: no heartbeat for 1.2 s"]
    bench.dies(0)
    bench.passes(0.25, but=silent)
    assert bench.plane.members.slots[1].life is Life.UP
    lines = bench.comes_up(0)
    assert lines == ["0 < serve"]
    assert bench.passes(0.25, but=silent)[0].startswith("kill 1: no heartbeat")


@pytest.mark.parametrize("dies", [True, False])
def test_a_silent_member_waits_for_no_other_that_cannot_be_replaced(dies):
    """SPEC.md 10.5. The replacements fail, or a process that was killed cannot die yet (state D)."""
    bench = Bench(3).up()
    lines = bench.passes(1.25, but=(0, 1))
    assert lines == ["kill 0: no heartbeat for 1.2 s"]
    for _ in range(32):
        if dies and bench.plane.members.slots[0].life is not Life.GONE:
            bench.dies(0, "status 3")
        lines += bench.passes(0.25, but=(0, 1))

    assert [line[:6] for line in lines if "kill" in line] == ["kill 0", "kill 1"]


def test_one_oversleeping_parent_blames_nobody():
    bench = Bench(4).up()

    assert bench.passes(60.0, but=tuple(bench.plane.members.slots), step=60.0) == []
    assert bench.passes(5.0) == []
    assert bench.plane.members.overslept > 59.0


def test_a_member_that_waits_for_a_processor_is_not_silent(bench):
    for looked in range(1, 41):
        bench.scheduled[0] = Scheduled(waited=0.24 * looked)
        assert bench.passes(0.25, but=(0,)) == []
    assert bench.passes(1.0, but=(0,))[0].startswith("kill 0: no heartbeat for")


def test_a_wait_that_lasts_counts_until_it_is_over(bench):
    for looked in range(1, 41):
        bench.scheduled[0] = Scheduled(waiting=0.24 * looked)
        assert bench.passes(0.25, but=(0,)) == []
    bench.scheduled[0] = Scheduled()
    assert bench.passes(0.25, but=(0,)) == ["kill 0: no heartbeat for 10.2 s"]


def test_a_member_that_talks_much_is_looked_at_once_a_second(bench):
    """A stranger can make a worker ask at any rate, and a look reads two files for each thread."""
    looks = []
    bench.plane.members.scheduled = lambda index: looks.append(index) or Scheduled()
    for number in range(500):
        bench.passes(0.01, step=0.01)
        bench.hears(0, "ask", id=number, topic="sts", body={})

    assert 4 <= looks.count(0) <= 6


def test_a_starved_member_misses_no_deadline_of_a_change(bench):
    bench.loads(TWO)
    bench.all_say("prepared", 2, but=(1,))

    for looked in range(1, 41):
        bench.scheduled[1] = Scheduled(waited=0.2 * looked)
        assert bench.passes(0.25) == []
    assert bench.passes(3.5)[0].startswith("kill 1: it did not prepare")


@pytest.mark.parametrize(
    ("say", "head", "why"),
    [
        ("hello", {}, "'hello' is not expected while UP"),
        ("up", {"version": 1}, "'up' is not expected while UP"),
        ("prepared", {}, "prepared without the number version"),
        ("prepared", {"version": True}, "prepared without the number version"),
        ("switched", {"version": 7}, "it switched to version 7, which nobody asked it to"),
        ("propose", {"id": 1, "parts": {}}, "'propose' is not expected while UP"),
        ("pong", {"n": 1, "stats": []}, "pong without the object stats"),
        ("ask", {"id": 1, "topic": "keys", "body": 3}, "ask without the object body"),
    ],
)
def test_nonsense_costs_whoever_talks_it(say, head, why, bench):
    assert bench.hears(0, say, **head) == [f"kill 0: it talked nonsense: {why}"]
    assert bench.plane.members.slots[1].serving
    assert bench.hears(0, "pong", n=1, stats={}) == []


def test_a_reload_asked_for_during_a_reload_is_done_after_it(alone):
    assert alone.hangs_up() == ["fork loader"]
    alone.plane.load()
    alone.plane.load()
    assert alone.did() == []
    alone.hears(LOADER, "refused", error="bad file")

    assert alone.dies(LOADER) == ["fork loader"]
    assert [line["reloaded"] for line in alone.said[1:]] == [False]


def test_a_loader_that_works_is_not_stuck(alone):
    alone.hangs_up()
    for looked in range(1, 101):
        alone.scheduled[LOADER] = Scheduled(ran=0.01 * looked)
        assert alone.passes(0.5) == []
    assert "the loader did nothing for 3 s" in alone.passes(4.0)[0]


@pytest.mark.parametrize("how", ["died", "nonsense", "never"])
def test_a_loader_that_fails_is_an_answer(how):
    bench = Bench(1, timing=Timing(load=3.0)).up()
    bench.hangs_up()
    if how == "died":
        bench.dies(LOADER)
    elif how == "nonsense":
        bench.hears(LOADER, "loaded", parts={POLICY: {"digest": "x", "pieces": 3, "stamp": 0.0}})
    else:
        bench.passes(4.0)

    (line,) = bench.said[1:]
    assert line["reloaded"] is False
    assert line["policy"] == "one"


def test_key_sets_of_the_fetcher_go_together_and_a_reload_goes_alone(alone):
    alone.proposes("keys/a", KEYS, 1)
    alone.loads(TWO)
    alone.proposes("keys/b", KEYS, 2)
    alone.proposes("keys/c", KEYS, 3)
    outcomes = []
    for version in (2, 3, 4):
        alone.all_say("prepared", version)
        outcomes.append(without(alone.all_say("switched", version), "piece", "prepare"))

    assert outcomes == [
        ["fetcher < outcome 1"],
        ["say {'reloaded': True, 'policy': 'two', 'version': 3, 'workers': 1, 'confirmed': 1}"],
        ["fetcher < outcome 2", "fetcher < outcome 3"],
    ]
    assert set(alone.plane.document.parts) == {POLICY, "keys/a", "keys/b", "keys/c"}


def test_a_worker_that_asked_for_a_key_is_answered_when_it_has_the_key(bench):
    """One question of the fetcher, one change for all."""
    assert bench.hears(1, "ask", id=7, topic="keys", body={"kid": "new"}) == ["fetcher < ask keys 1"]
    bench.proposes("keys/a", KEYS, 1)
    assert bench.hears(FETCHER, "answer", id=1, body={}, after=True) == []
    bench.all_say("prepared", 2)
    assert bench.all_say("switched", 2, but=(FETCHER,)) == []

    assert bench.hears(FETCHER, "switched", version=2) == ["fetcher < outcome 1", "1 < answer 7"]


def test_a_fetcher_that_dies_takes_no_question_along_and_the_next_is_asked_once_it_is_ready(alone):
    """Before, it could only answer that it knows nothing, and a good credential would be refused."""
    alone.hears(0, "ask", id=7, topic="sts", body={})
    alone.hears(FETCHER, "used", what="sig-0", until=1000)
    alone.hears(FETCHER, "used", what="sig-1", until=1700)
    alone.gone(FETCHER)

    assert alone.hears(0, "ask", id=8, topic="sts", body={}) == []
    assert alone.hears(FETCHER, "up", version=1) == ["fetcher < ask sts 1", "fetcher < ask sts 2"]
    assert alone.hears(FETCHER, "answer", id=1, body={"ok": 1}) == ["0 < answer 7"]
    assert alone.plane.used == {"sig-1": 1700}, "the next one knows which signatures still count as used"


def test_a_reload_that_the_end_cuts_off_is_answered(alone):
    alone.hangs_up()
    alone.plane.stop()

    assert alone.did()[1:3] == [
        "kill loader: the agent is stopping",
        "say {'reloaded': False, 'policy': 'one', 'error': 'the agent is stopping', 'version': 1}",
    ]
    assert "'error': 'the agent is stopping'" in alone.hangs_up()[0]


@pytest.mark.parametrize("queued", [False, True])
def test_a_reload_that_is_not_in_force_at_the_end_is_given_up(alone, queued):
    if queued:
        alone.proposes("keys/a", KEYS, 1)
    alone.loads(TWO)
    alone.plane.stop()
    alone.did()
    alone.dies(0, "status 0")

    line = {"reloaded": False, "policy": "one", "error": "the agent is stopping", "version": 1}
    assert alone.said[1:] == [line]


def test_a_reload_in_force_is_answered_though_the_fetcher_ends_before_it_has_saved():
    bench = Bench(1, saves=True).up()
    bench.loads(TWO)
    bench.confirmed(2)
    bench.plane.stop()
    bench.dies(0, "status 0")
    assert bench.said[1:] == []
    bench.dies(FETCHER, "status 0")

    [line] = bench.said[1:]
    assert (line["reloaded"], line["policy"], line["saved"]) == (True, "two", False)


def test_that_the_fetcher_was_replaced_is_put_on_record_by_a_worker(bench):
    bench.dies(0)
    bench.dies(FETCHER)

    lines = without(bench.passes(0.25), "fork 0")
    assert lines == ["fork fetcher: it ended with signal 9", "1 < note"]


def test_a_fork_that_fails_is_tried_less_and_less_often_and_is_no_replacement(bench, monkeypatch):
    bench.passes(60.0)
    monkeypatch.setattr(bench.plane, "forked", lambda index, _: bench.plane.died(index, "fork failed"))
    bench.dies(FETCHER)

    assert 10 < len(bench.passes(60.0)) < 20  # forks alone


def test_what_a_dead_worker_asked_is_answered_to_nobody(bench):
    bench.hears(0, "ask", id=7, topic="sts", body={})
    assert bench.dies(0) == []
    bench.passes(0.25)
    bench.comes_up(0)

    assert bench.hears(FETCHER, "answer", id=1, body={}) == []


def test_a_stamp_is_no_new_version(alone):
    alone.proposes("keys/a", KEYS, 1)
    alone.confirmed(2)

    assert alone.hears(FETCHER, "stamp", name="keys/a", at=995.0) == ["fetcher < stamp", "0 < stamp"]
    assert alone.plane.document.version == 2
    assert alone.plane.document.parts["keys/a"].stamp == 995.0


def test_an_outcome_waits_for_the_disk_but_not_for_ever_and_says_what_the_disk_does_not_have():
    bench = Bench(1, saves=True).up()
    bench.loads(TWO)
    assert bench.confirmed(2) == []
    assert "'saved': False" in bench.hears(FETCHER, "saved", version=2, error="full")[0]
    assert "'saved': False, 'save_error': 'full'" in bench.loads(TWO)[-1]
    bench.hears(FETCHER, "saved", version=2, error="")
    assert "'saved': True" in bench.loads(TWO)[-1]

    bench.loads(THREE)
    bench.confirmed(3)
    assert "'saved': True" in bench.hears(FETCHER, "saved", version=3, error="")[0]
    bench.loads(TWO)
    bench.confirmed(4)
    line = bench.passes(4.0)[0]
    assert "'reloaded': True" in line
    assert "'saved': False, 'save_error': 'the disk did not answer in time'" in line


def test_what_a_dead_fetcher_proposed_never_comes_into_force(bench):
    """The next one looks at the revocations again: what came later would undo what it has confirmed."""
    bench.proposes("revocations", TWO, 1)
    bench.proposes("revocations", THREE, 2)

    assert bench.dies(FETCHER) == ["0 < abort 2", "1 < abort 2"]
    bench.passes(0.25)
    bench.comes_up(FETCHER)
    bench.all_say("prepared", 2)
    assert set(bench.plane.document.parts) == {POLICY}
    assert bench.plane.status()["change"] is None


def test_the_next_fetcher_is_not_told_what_came_of_a_dead_ones_proposal(bench):
    """Its own first proposal has the same number: it would call revocations settled that are not in force."""
    bench.proposes("revocations", TWO, 1)
    bench.all_say("prepared", 2)
    bench.hears(0, "switched", version=2)

    bench.replaced(FETCHER)
    bench.proposes("revocations", THREE, 1)
    assert [line for line in bench.hears(1, "switched", version=2) if "outcome" in line] == []
    bench.confirmed(3)

    outcomes = [said.head["body"] for _, said in bench.sent if said.say == "outcome"]
    assert [outcome["version"] for outcome in outcomes] == [3]


def test_an_answer_waits_for_no_proposal_of_a_fetcher_that_died(alone):
    alone.hears(0, "ask", id=7, topic="keys", body={})
    alone.proposes("keys/a", KEYS, 1)
    alone.hears(FETCHER, "answer", id=1, body={}, after=True)
    assert "0 < answer 7" not in alone.passes(1.5, but=(FETCHER,)) + alone.replaced(FETCHER)

    assert alone.hears(FETCHER, "answer", id=1, body={}, after=True) == ["0 < answer 7"]


def test_who_waits_for_a_key_at_the_end_still_gets_it(bench):
    bench.hears(1, "ask", id=7, topic="keys", body={"kid": "new"})
    bench.plane.stop()
    bench.did()
    bench.dies(0, "status 0")
    bench.proposes("keys/a", KEYS, 1)
    assert bench.hears(FETCHER, "answer", id=1, body={}, after=True) == []
    bench.all_say("prepared", 2, but=(0,))
    bench.hears(1, "switched", version=2)

    assert "1 < answer 7" in bench.hears(FETCHER, "switched", version=2)


def test_the_end_workers_first_then_the_fetcher(bench):
    bench.plane.stop()

    assert bench.did() == ["fetcher < note", "0 < drain", "1 < drain"]
    assert bench.dies(0, "status 0") == []
    assert bench.dies(1, "status 0") == ["fetcher < drain"]
    assert not bench.plane.finished
    bench.dies(FETCHER, "status 0")
    assert bench.plane.finished


class Family:
    """Members that follow orders, at times of their own, and die, refuse or stay silent by chance."""

    def __init__(self, seed):
        self.chance = random.Random(seed)
        self.bench = Bench(self.chance.choice([1, 2, 4]), saves=self.chance.random() < 0.5)
        self.plane = self.bench.plane
        self.enforced: dict[int, int] = {}
        self.commits = 0
        self._told: dict[int, list[tuple[str, int]]] = {}
        self._read = self._lines = self._serial = 0
        self._promised = self._seen = 1
        self.plane.start()

    def turn(self):
        """One event, and then what must hold."""
        index = self.chance.choice(list(self.plane.members.slots))
        self._happen(self.chance.random(), index)
        self._take()
        self._check()

    def _happen(self, event, index):
        bench, plane = self.bench, self.plane
        if event < 0.05 and plane.members.served and plane.members.slots[index].pid:
            self._dies(index)
        elif event < 0.10 and plane.members.served:
            bench.loads(self._part())
        elif event < 0.15 and plane.members.served and plane.members.slots[FETCHER].life is Life.UP:
            bench.proposes("keys/a", self._part(), self._serial)
        elif event < 0.30:
            silent = tuple(place for place in plane.members.slots if self.chance.random() < 0.1)
            bench.passes(2 * self.chance.random(), but=silent)
        elif plane.members.slots[index].life is Life.DYING:
            self._dies(index)
        elif plane.members.slots[index].life is Life.BORN:
            self.enforced[index] = plane.members.slots[index].version
            bench.hears(index, "up", version=plane.members.slots[index].version)
        elif self._told.get(index):
            self._obeys(index, *self._told[index].pop(0))

    def _part(self):
        self._serial += 1
        return Part.of((str(self._serial).encode(),))

    def _dies(self, index):
        self._take()
        self._told.pop(index, None)
        self.bench.dies(index)

    def _obeys(self, index, say, version):
        if say == "serve":
            self.bench.hears(index, "serving")
        elif say == "switch":
            self.enforced[index] = version
            self.bench.hears(index, "switched", version=version)
            if index == FETCHER:
                self.bench.hears(FETCHER, "saved", version=version, error="")
        elif self.chance.random() < 0.1:
            self.bench.hears(index, "refused", version=version, error="no")
        else:
            self.bench.hears(index, "prepared", version=version)

    def _take(self):
        """Return what the members received since."""
        self.bench.did()
        for place, said in self.bench.sent[self._read :]:
            if said.say in ("prepare", "switch"):
                self._told.setdefault(place, []).append((said.say, said.head["version"]))
            elif said.say == "serve":
                assert self.enforced[place] == self.plane.document.version
                self._told.setdefault(place, []).append(("serve", 0))
        self._read = len(self.bench.sent)

    def _check(self):
        for line in self.bench.said[self._lines :]:
            if line.get("reloaded"):
                self._promised = max(self._promised, line["version"])
                self.commits += 1
        self._lines = len(self.bench.said)
        for place in self.plane.members.workers:
            if place.serving:
                assert self.enforced[place.index] >= self._promised
        assert self.plane.document.version >= self._seen
        self._seen = self.plane.document.version


def test_whatever_happens_nobody_serves_anything_but_what_is_in_force():
    """Return what must hold at every moment: once a reload is confirmed, each worker that serves has at
    least its version; a worker is asked to serve only with the version that is in force; versions only grow.
    """
    commits = 0
    for seed in range(150):
        family = Family(seed)
        for _ in range(400):
            family.turn()
        commits += family.commits

    assert commits > 150

"""No request of a stranger costs much; and the search that says so finds what does (`benchmarks.hostile`)."""

import hostile_requests as hostile
import pytest
from counting import steps
from hostile_requests import Attack, Cost, Gene, Target
from programs import module

TRIES = 400


@pytest.fixture(scope="module")
def target():
    return Target()


def worst(target, *, strangers):
    """Seconds of the costliest request that a short search finds."""
    attack, _ = hostile.search(target, 7, strangers=strangers, worth=lambda cost: cost.seconds, tries=TRIES)
    return target.cost(attack, times=9).seconds


@pytest.mark.parametrize(("name", "strangers"), [("slow-redaction", True), ("slow-paths", False)])
def test_the_search_finds_an_old_fault_that_is_put_back(target, name, strangers):
    """The same search, seed and process; only the fault differs, so the ratio is the fault's."""
    sound = worst(target, strangers=strangers)
    with hostile.fault(name):
        assert worst(target, strangers=strangers) > 4 * sound


def count(target, attack):
    frame = target.frame(attack)
    return steps(lambda: target.ask(frame))


def test_no_record_is_longer_than_its_bound(target):
    attack, _ = hostile.search(target, 7, strangers=True, worth=lambda cost: float(cost.log), tries=4000)

    assert 1500 < target.cost(attack).log < hostile.LOG_BYTES


@pytest.mark.parametrize("form", ["raw", "bearer", "jwt", "header", "sts"])
def test_no_form_of_a_credential_takes_a_step_for_each_byte(target, form):
    """Steps of the interpreter, counted: up to 16 kB may take a tenth of a step for each byte."""
    usual = count(target, Attack("jwt", Gene((('{"iss":"x"}', 1),))))
    counts = {
        (text, length): count(target, Attack(form, Gene(((text, length // len(text)),))))
        for text in hostile.UNITS
        for length in (5900, 16000)
    }

    assert max(counts.values()) < 2 * usual + 1600, max(counts.items(), key=lambda item: item[1])


@pytest.mark.parametrize("text", hostile.UNITS)
def test_a_byte_of_a_path_costs_the_same_however_many_there_are(target, text):
    attack = Attack("none", path=Gene(((text, 4095 // len(text)),)))

    # A square would be four, and the fixed part makes it less than one.
    assert hostile.growth(target, attack) < 3


def test_strangers_leave_nothing_in_memory(target):
    assert hostile.retained(target, 3) < hostile.MEMORY_BYTES


def test_a_stranger_asks_for_one_signature_check_at_most(target):
    before = target.checked
    target.ask(target.frame(Attack("jwt", Gene((('{"iss":"https://idp.example.com/corp"}', 1),)))))

    assert target.checked == before + 1


def test_cost_for_each_byte():
    assert Cost(1000, seconds=1e-3).each == 1000.0


def test_the_table_of_strangers_has_every_kind_and_lets_nobody_in():
    done = module("benchmarks.strangers", "--seconds", 0, "--rounds", 1, "--flood", 3, timeout=300)
    lines = done.stdout.splitlines()

    assert done.stderr == ""
    assert len([line for line in lines if " times " in line]) == 15, done.stdout
    assert sum(" served" in line for line in lines) == 6

"""The meter says what the server really did, and says when it could not know.

The whole table, with 10,000 samples and more for each row, is `python -m benchmarks.truth`.
"""

import os
import signal
import threading
import time

import pytest
from truth import POOLS, Compared, phase, truth

from iamroles_loadtests.measuring.generator import Generator, GeneratorError
from iamroles_loadtests.measuring.validity import Tolerance, doubts


@pytest.mark.parametrize(
    ("plan", "rate", "samples"),
    [("fixed", 300, 600), ("stall", 2_000, 10_000), ("bimodal", 10_000, 10_000), ("quick", 2_000, 2_000)],
)
def test_the_figures_are_the_servers_own(plan, rate, samples):
    found = Compared(plan, rate, samples / rate)

    assert found.known  # each sample is in the server's record
    assert (found.over > 0).all()  # nothing was answered faster than it was held
    assert found.share_off() < 0.2, found.figures  # a meter that lies does so of most
    assert found.share_off(factor=2) > 0.5  # a meter that lies is caught
    assert found.measured.stamped
    assert not found.measured.faults


def test_a_frozen_generator_keeps_the_figures_from_sent_and_says_so():
    """Frozen for 100 ms in the middle: what was under way keeps its stamp, what was due meanwhile is late."""
    with truth("fixed") as server, Generator(POOLS) as generator:
        thread = threading.Thread(target=_freeze, args=(generator.pid, server.said))
        thread.start()
        played = generator.play(phase(server.address, 1_000, 3.0))
        thread.join()
    sent, due, held = (played.measured.whole(name) for name in ("sent", "due", "reported"))

    frozen = 1e3 * max(took for _, took in played.measured.stalls)
    assert frozen > 80_000
    why = doubts(played, Tolerance())
    assert any("stood still" in reason for reason in why), why
    # 3 % of the samples were due in the freeze.
    assert due.at(99.0) > 0.4 * frozen
    true = held.at(99.0)  # of these very samples: on a busy host those of the warm-up are another matter
    assert abs(sent.at(99.0) - true) < 0.1 * max(true, due.at(99.0))


def test_a_generator_that_dies_gives_no_figures():
    with truth("fixed") as server, Generator(POOLS) as generator:
        killer = threading.Timer(1.0, os.kill, (generator.pid, signal.SIGKILL))
        killer.start()
        with pytest.raises(GeneratorError, match="exit code -9"):
            generator.play(phase(server.address, 500, 20.0))
        killer.join()


def _freeze(pid, said):
    said.readline()  # of 300 that warm up and 3,000 that count
    os.kill(pid, signal.SIGSTOP)
    time.sleep(0.1)
    os.kill(pid, signal.SIGCONT)

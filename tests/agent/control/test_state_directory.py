"""The state directory under stress: a full disk, a writer that died, an invalid index."""

import asyncio
import errno
import os
import threading
from itertools import chain, repeat
from types import SimpleNamespace
from unittest import mock

import pytest
from spop_client import until

from iamroles_agent.base.config import Config
from iamroles_agent.base.errors import StartError
from iamroles_agent.control import policy_part
from iamroles_agent.control.document import POLICY, Document, Part
from iamroles_agent.control.store import Restored, Store
from iamroles_agent.processes import fetcher
from iamroles_agent.processes.agent import Agent, _at_start

SMALL = Document(1, {POLICY: Part.of((b"small",))})
LARGE = Document(2, {POLICY: Part.of((b"large" * 1000,))})


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "state")
    store.lock()
    yield store
    store.let_go()


def halves(store):
    return [path.name for path in store.directory.iterdir() if path.name.endswith(".new")]


def test_what_does_not_fit_leaves_its_room_to_what_comes_next(store):
    """Else one policy that is too large keeps every later one, however small, from being saved."""
    store.write(SMALL)

    full = mock.Mock(side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    with mock.patch.object(os, "fsync", full), pytest.raises(OSError, match="No space left"):
        store.write(LARGE)

    assert halves(store) == []
    assert store.read().document.policy == SMALL.policy


def test_a_policy_that_cannot_be_replaced_on_the_disk_does_not_come_back(store):
    keys = {"keys/a": Part.of((b"keys",))}
    store.write(Document(1, {**SMALL.parts, **keys}))

    assert store.disown(SMALL) == ""
    assert store.read().died
    sharper = Part.of((b"small", b"shadow"), digest=SMALL.policy)
    assert store.disown(Document(2, {**keys, POLICY: sharper})) == ""
    assert not store.read().died
    store.write(Document(1, {**SMALL.parts, **keys}))
    assert [store.disown(LARGE), store.disown(LARGE)] == ["", ""]
    assert (store.read().died, set(store.read().document.parts)) == (False, {"keys/a"})

    store.write(SMALL)
    assert store.read().document.policy == SMALL.policy
    (store.directory / "in-force.json").unlink()
    (store.directory / "in-force.json").mkdir()
    assert "may come back" in store.disown(LARGE)


@pytest.mark.parametrize("broken", [["write"], ["write", "disown"]])
async def test_an_end_of_memory_ends_no_saving(store, monkeypatch, broken):
    monkeypatch.setattr(fetcher, "_AGAIN", 0.0)
    saver, said = fetcher.Fetcher(None, SimpleNamespace(channel=None, document=SMALL)), []
    saver.link.send = lambda message: said.append((message.head["error"], saver._save_error))
    for name in broken:
        faults = mock.Mock(side_effect=chain([MemoryError], repeat(mock.DEFAULT)), wraps=getattr(store, name))
        monkeypatch.setattr(store, name, faults)

    saver._unsaved.set()
    task = asyncio.create_task(saver._keep_saved(store))
    await until(lambda: len(said) == 2 or task.done())
    task.cancel()

    assert said == [("MemoryError", "MemoryError"), ("", "")]
    assert store.read().document.policy == SMALL.policy


async def test_a_disk_that_does_not_answer_is_reported_while_it_does_not(store, monkeypatch):
    monkeypatch.setattr(fetcher, "_DISK", 0.01)
    saver, answered = fetcher.Fetcher(None, SimpleNamespace(channel=None, document=SMALL)), threading.Event()
    monkeypatch.setattr(store, "write", lambda _document: answered.wait())
    saver._unsaved.set()
    task = asyncio.create_task(saver._keep_saved(store))
    try:
        await until(lambda: saver._save_error)
    finally:
        answered.set()
    await until(lambda: not saver._save_error)
    task.cancel()


async def test_a_task_of_the_fetcher_that_failed_begins_again(monkeypatch):
    monkeypatch.setattr(fetcher, "_AGAIN", 0.0)
    work = mock.AsyncMock(side_effect=[MemoryError, None])
    await fetcher.Fetcher(None, SimpleNamespace(channel=None, document=SMALL))._lasting(work)
    assert work.await_count == 2


async def test_a_key_set_that_could_not_be_put_in_force_is_proposed_again(monkeypatch):
    """The next fetch may be an hour away. Until then tokens of a new key were refused."""
    monkeypatch.setattr(fetcher, "_AGAIN", 0.0)
    loop, proposed = asyncio.get_running_loop(), []
    outcomes = [{"done": False, "error": "it cannot be built: MemoryError"}, {"done": True}]
    held = fetcher.Fetcher(None, SimpleNamespace(channel=None, document=SMALL))
    held.sources["b"] = None

    def propose(edits):
        proposed.append(list(edits))
        outcome = loop.create_future()
        outcome.set_result(outcomes[len(proposed) - 1])
        return outcome

    monkeypatch.setattr(held.link, "propose", propose)
    held._taken("b", {"keys": []}, 1.0)
    await until(lambda: len(proposed) == 2 or not held._tasks)

    assert proposed == [["keys/b"], ["keys/b"]]


def test_a_policy_of_a_later_release_and_a_faulty_file_stop_the_start_with_a_remedy(store, tmp_path):
    store.write(Document(3, {"policy": Part.of((b'["policy","",{"version":1,"later":true}]',))}))
    store.let_go()
    (tmp_path / "policy.toml").write_text("version = ")

    with pytest.raises(StartError, match="Move the state directory away"):
        Agent.read(tmp_path / "policy.toml", store.directory)


@pytest.mark.parametrize(("now", "warnings"), [(b"a" * 32, 0), (b"b" * 32, 1)])
def test_after_a_death_another_nonce_key_is_reported(caplog, now, warnings):
    """The key is a file of its own, and no part of the policy's version."""
    accepted, read = (policy_part.encode(Config(version=1), nonce_key=key) for key in (b"a" * 32, now))
    assert _at_start(Restored(Document(1, {POLICY: accepted}), died=True), read).parts == {POLICY: accepted}
    assert caplog.text.count("only its nonce key or shadow policy differs") == warnings == len(caplog.records)


def test_what_a_dead_writer_left_half_done_is_removed_at_the_next_start(store):
    store.write(SMALL)
    store.let_go()
    (store.directory / ".part-0.new").write_bytes(b"half")
    (store.directory / ".in-force.json.new").write_bytes(b"{")

    store.lock()

    assert halves(store) == []
    assert store.read() is not None


@pytest.mark.parametrize(
    "index",
    [
        b"[" * 100_000,
        b"\xff\xfe",
        b"{",
        b"[]",
        b'{"format": 99, "version": 1, "running": true, "parts": {}}',
        b'{"format": 1, "version": -5, "running": true, "parts": {}}',
        b'{"format": 1, "version": 1.5, "running": true, "parts": {}}',
        b'{"format": 1, "version": 1, "running": true, "parts": []}',
    ],
)
def test_an_index_that_makes_no_sense_stops_the_start_with_a_remedy(store, index):
    store.write(SMALL)
    (store.directory / "in-force.json").write_bytes(index)

    with pytest.raises(StartError, match=r"is damaged .* move this one away"):
        store.read()


def test_a_lock_that_cannot_be_taken_stops_the_start_with_a_remedy(store):
    with pytest.raises(StartError, match=r"another agent uses it.*--take-over"):
        Store(store.directory).lock()
    store.let_go()
    (store.directory / "lock").unlink()
    (store.directory / "lock").mkdir()

    with pytest.raises(StartError, match=r"lock: Is a directory.* move this one away"):
        store.lock()

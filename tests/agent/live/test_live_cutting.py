"""Which streams are found, in which order, and what delays whom: the cutter against a console of text."""

import asyncio
from dataclasses import replace

import pytest
import test_live
from live_proxy import Row
from test_live import TICKET, WHO, by_expiry

from iamroles_agent.live import cutter as cutting
from iamroles_agent.live.console import WAITING, numbered, streams, waiting
from iamroles_agent.live.judge import EXPIRED, REVOKED, UNKNOWN, Ends
from iamroles_agent.live.proxy_worker import SETTLE, UNLISTED, WAIT
from iamroles_agent.live.ticket import Ticket

proxy = test_live.proxy


def of(principal):
    return replace(TICKET, identity=WHO._replace(principal=principal)).encode()


def revoking(*principals):
    """A judge by whom these are revoked."""

    def judge(ticket, expires, fresh, before):
        who = Ticket.decode(ticket).identity.principal
        return Ends(0, REVOKED) if who in principals else Ends(expires, EXPIRED)

    return judge


def ended(proxy):
    return [cut.stream.number for cut in proxy.cuts]


# --- found by number


@pytest.mark.parametrize(
    ("sender", "whole"), [("10.0.0.1:99", 1), ("unix:2", 1), ("192.0.2.1:1", 1), ("", 0)]
)
async def test_a_stream_is_found_by_its_number_if_haproxy_shows_another_address(proxy, sender, whole):
    """If it shows the stream's own, the whole list is not asked for."""
    proxy.sender, proxy.streams = sender, {n: Row(4710 + n, 9000) for n in (7, 8, 9)}
    proxy.streams[8].ticket = of("bob")
    await proxy.cutter(revoking("alice")).look()

    assert ended(proxy) == [7, 9]
    assert proxy.streams[8].ended is None
    assert proxy.asked.count("show sess all") == whole


async def test_many_streams_of_one_connection_are_not_looked_at_one_by_one(proxy):
    proxy.streams = {n: Row(4711, 9000) for n in range(40)}
    await proxy.cutter(revoking("alice")).look()

    looks = [command for command in proxy.asked if command.startswith("show sess 0x")]
    assert (len(ended(proxy)), len(looks)) == (40, 40)


def test_rows_of_clients_without_a_port_and_numbers_of_streams():
    [row] = streams("# table:\n0x1: key=7|192.0.2.1||1000|2000|c0|T use=1 exp=1 gpt0=1 gpc0=0\n")
    assert (row.number, row.port) == (7, 0)
    answer = "0xa: [28/Nov/2026:09:24:49.9] id=7 proto=unix_stream source=unix:3\n  id=9 \n0xb: [x] id=8 p\n"
    assert numbered(answer) == {7: "0xa", 8: "0xb"}


async def test_what_haproxy_does_not_show_stays_due_and_is_reported(proxy, caplog):
    proxy.streams, proxy.hidden = {7: Row(4711, 9000)}, {7}
    cutter = proxy.cutter(revoking("alice"))
    for _ in range(3):
        await cutter.look()
        proxy.now += 2 * SETTLE
    assert (ended(proxy), cutter.numbers.unreachable) == ([], 1)
    assert caplog.text.count("does not show 1 due streams") == 1

    proxy.hidden = set()
    await cutter.look()
    await cutter.look()
    assert (ended(proxy), cutter.numbers.unreachable) == ([7], 0)


async def test_what_a_starved_worker_lets_in_long_after_a_change_is_cut(proxy):
    cutter = proxy.cutter(revoking("alice"))
    await proxy.looked(cutter, *range(int(proxy.now), int(proxy.now + UNLISTED) + 2))
    proxy.streams = {7: Row(4711, 9000, ends=9000)}
    await cutter.look()
    assert ended(proxy) == []
    cutter.keep_reading()
    await cutter.look()
    assert ended(proxy) == [7]


async def test_a_frozen_worker_delays_no_cut_in_another(proxy):
    proxy.streams, proxy.frozen = {7: Row(4711, 9000)}, asyncio.Event()
    cutter = proxy.cutter(revoking("alice"))
    for _ in range(2):
        await asyncio.wait_for(cutter.look(), 1.0)

    assert (ended(proxy), cutter.numbers.judged) == ([7], -1)
    proxy.frozen.set()
    await asyncio.sleep(0)
    for _ in range(2):
        await cutter.look()
    assert (cutter.numbers.judged, cutter.numbers.unreachable) == (0, 0)


# --- requests that wait


async def test_a_request_that_waits_is_cut_by_a_change_and_at_its_end(proxy):
    proxy.waits = {7: Row(4711, 9000), 8: Row(4712, 2000, ticket=of("bob")), 9: Row(4713, 9000, ended=1.0)}
    cutter = proxy.cutter(revoking("alice"))
    await cutter.look()
    assert not proxy.cuts  # most are over in a moment by themselves
    await proxy.looked(cutter, proxy.now + WAIT + 0.1)
    assert ended(proxy) == [7]

    await proxy.looked(cutter, 2000 + WAIT + 0.1)
    assert ended(proxy) == [7], "HAProxy may be about to end it, and to give its pointer to another"
    await proxy.looked(cutter, proxy.now + WAIT + 0.1)
    cuts = [(cut.stream.number, cut.cause, cut.stream.src, cut.stream.port) for cut in proxy.cuts]
    assert cuts == [(7, REVOKED, "2001:db8::1", 0), (8, EXPIRED, "2001:db8::1", 0)]


async def test_what_streams_is_judged_by_its_own_entry_and_not_as_a_request_that_waits(proxy):
    """Its end was moved in the table of long streams alone."""
    proxy.streams, proxy.waits = {7: Row(4711, 3000)}, {7: Row(4711, 2000)}
    cutter = proxy.cutter(by_expiry)
    await proxy.looked(cutter, 1990.0, 1999.0, 2000.4, 2001.0, 2900.0, 2901.0)

    assert not proxy.cuts
    keys = {row.key for row in waiting(proxy.answer(f"show table {WAITING}"))}
    assert not cutter._workers[2].due.keys() & keys


async def test_a_configuration_from_before_is_reported_once_and_streams_are_cut(proxy, caplog):
    proxy.streams, proxy.lists = {7: Row(4711, 9000)}, False
    cutter = proxy.cutter(revoking("alice"))
    for _ in range(3):
        await cutter.look()

    assert ended(proxy) == [7]
    assert caplog.text.count("has no table iam-wait") == 1


async def test_a_request_that_cannot_be_judged_again_lives_to_its_end_while_nothing_changes(proxy):
    proxy.streams = {7: Row(4711, 2100)}
    cutter = proxy.cutter(lambda ticket, expires, fresh, before: Ends(0, UNKNOWN))
    cutter.changed_at = 1000.0
    await proxy.looked(cutter, 2098.5, 2099.9)
    assert not proxy.cuts
    await proxy.looked(cutter, 2100.2)
    assert [(cut.stream.number, cut.cause) for cut in proxy.cuts] == [(7, EXPIRED)]


@pytest.mark.parametrize("step", [1000.0, -1000.0])
async def test_a_stream_whose_verdict_was_under_way_while_the_clock_was_set_is_judged(proxy, step):
    """A host that stood still looks the same. All streams are read for five seconds, and then no longer."""
    cutter = proxy.cutter(revoking("alice"))
    began = proxy.now
    await proxy.looked(cutter, began)
    cutter.changed()
    await proxy.looked(cutter, began + 0.5)
    proxy.streams = {7: Row(4711, 90_000)}
    await proxy.looked(cutter, began + step, began + step + 0.5)
    assert ended(proxy) == [7]

    await proxy.looked(cutter, *(began + step + second for second in range(1, 8)))
    proxy.streams, proxy.rows = {8: Row(4712, 90_000, ticket=of("bob"))}, 0
    await proxy.looked(cutter, began + step + 8)
    assert proxy.rows == 0


# --- nobody delays the cuts of others


async def test_what_has_ended_delays_no_cut(proxy):
    """Streams that ended before their credential leave entries: neither read nor judged before the cut."""
    proxy.streams = {n: Row(4711, 9000, ended=1989.0) for n in range(100, 5100)}
    proxy.streams[7] = Row(4710, 9000)
    judged, shown = [], {}

    def judge(ticket, expires, fresh, before):
        judged.append(ticket)
        return Ends(0, REVOKED)

    answer = proxy.answer
    proxy.answer = lambda command: (shown.setdefault(command, proxy.rows), answer(command))[1]
    await proxy.cutter(judge).look()

    cut = next(at for at, command in enumerate(proxy.asked) if command.startswith("shutdown"))
    assert (ended(proxy), len(judged)) == ([7], 1)
    assert all("conn_cur gt 0" in one for one in proxy.asked[:cut] if one.startswith("show table iam-live"))
    assert shown[proxy.asked[cut]] == 1
    assert proxy.rows == 1  # HAProxy itself dropped the others


async def test_what_ended_at_its_time_is_recorded_though_it_is_much_and_a_change_goes_first(proxy):
    proxy.streams = {n: Row(4711, 2000, ended=2000.0) for n in range(1000)}
    cutter, tell = proxy.cutter(by_expiry), proxy.tell
    proxy.now = 2000.4

    async def telling(commands):
        await tell(commands)
        cutter.revoked()

    proxy.tell = telling
    await cutter.look()
    assert 0 < len(proxy.cuts) < 1000

    proxy.tell = tell
    cutter._wake.clear()
    await cutter.look()
    assert (len(proxy.cuts), len(proxy.streams)) == (1000, 0)


async def test_a_thousand_streams_of_one_principal_delay_nobody_else_s(proxy):
    proxy.streams = {n: Row(4711 + n, 9000) for n in range(1000)}
    proxy.streams |= {n: Row(4711 + n, 9000, ticket=of("bob")) for n in (5000, 5001)}
    await proxy.cutter(revoking("alice", "bob")).look()

    first = ended(proxy)[:20]
    assert {5000, 5001} <= set(first)
    assert len(proxy.cuts) == 1002


async def test_a_change_while_many_are_cut_is_looked_at_before_the_rest(proxy):
    proxy.streams = {n: Row(4711 + n, 9000) for n in range(1000)}
    cutter = proxy.cutter(revoking("alice"))
    cut = cutter.cut

    def recording(done):
        cut(done)
        cutter._wake.set()

    cutter.cut = recording
    await cutter.look()
    assert 0 < len(proxy.cuts) < 200

    cutter.cut = cut
    cutter._wake.clear()
    await cutter.look()
    assert len(proxy.cuts) == 1000


async def test_what_is_left_of_a_look_is_looked_at_soon(proxy):
    proxy.streams, proxy.hidden = {7: Row(4711, 9000)}, {7}
    cutter = proxy.cutter(revoking("alice"))
    await cutter.look()
    assert cutter._pause() == cutting.POLL
    proxy.waits, proxy.streams = {8: Row(4711, 9000)}, {}
    await cutter.look()
    assert cutter._pause() == pytest.approx(WAIT)


async def test_a_cut_is_looked_at_again_soon_however_long_its_own_look_took(proxy):
    proxy.streams = {7: Row(4711, 9000)}
    cutter = proxy.cutter(revoking("alice"), record=lambda _: setattr(proxy, "now", proxy.now + 1))
    await cutter.look()
    assert (proxy.streams, cutter._pause()) == ({}, pytest.approx(0.15))
    await cutter.look()
    assert cutter._pause() == cutting.POLL


async def test_ends_that_a_policy_moved_are_told_to_haproxy_after_the_cuts(proxy):
    proxy.streams = {n: Row(4711 + n, 9000) for n in range(300)}
    proxy.streams[500] = Row(4710, 9000, ticket=of("bob"))
    judge = revoking("bob")

    def sooner(*question):
        found = judge(*question)
        return found if found.cause == REVOKED else Ends(8000, EXPIRED)

    await proxy.cutter(sooner).look()

    cut = next(at for at, command in enumerate(proxy.asked) if command.startswith("shutdown"))
    assert not any(command.startswith("set table") for command in proxy.asked[:cut])
    assert {row.ends for n, row in proxy.streams.items() if n != 500} == {8000}

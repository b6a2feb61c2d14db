"""The identity cache gives the same identity back, while its key is in force."""

import gc
from hashlib import sha256

import pytest
from tokens_support import NOW, Clock

from iamroles_agent.base.identity import Identity, RoleArn
from iamroles_agent.tokens.cache import IdentityCache
from iamroles_agent.tokens.keys import Key

ROLES = tuple(RoleArn("aws", "123456789012", name) for name in ("reader", "writer"))
PLAIN = Identity("corp", "alice", "s-1", ROLES, NOW + 60)


def key(kid):
    return Key(kid, "RSA", "", None, None, ("AQAB", kid))


def digest(number):
    return sha256(str(number).encode()).digest()


@pytest.mark.parametrize(
    "identity",
    [
        PLAIN,
        PLAIN._replace(roles=(), scopes=frozenset()),
        PLAIN._replace(
            issued_at=NOW,
            preferred=ROLES[1],
            scopes=frozenset({"a", "b"}),
            credential="sha256:1",
            key_id="k1",
            check_again=NOW + 5,
            grounds=("one", "two"),
        ),
    ],
)
def test_it_gives_back_what_it_got(identity):
    cache = IdentityCache(Clock(), 100_000, 1 << 20)
    cache.put(digest(1), identity, None)
    found = cache.get(digest(1))
    assert (found, type(found)) == (identity, Identity)
    assert cache.get(digest(2)) is None


def test_an_entry_dies_with_its_key_also_when_the_key_is_forgotten():
    cache = IdentityCache(Clock(), 100_000, 1 << 20)
    old, good, new = key("old"), key("good"), key("new")
    cache.put(digest(1), PLAIN, old)
    cache.put(digest(2), PLAIN, good)
    cache.put(digest(3), PLAIN, old)
    old.live = False
    assert cache.get(digest(1)) is None
    cache.put(digest(4), PLAIN, new)  # now nothing but its number is left of the old one
    assert [cache.get(digest(n)) for n in range(1, 5)] == [None, PLAIN, None, PLAIN]
    assert len(cache) == 2


def test_it_is_bounded_in_entries_and_bytes_over_all_tables():
    cache = IdentityCache(Clock(), 20_000, 1 << 30)
    for number in range(21_000):
        cache.put(digest(number), PLAIN, None)
    assert len(cache) == 20_000
    small = IdentityCache(Clock(), 100_000, 50_000)
    for number in range(1000):
        small.put(digest(number), PLAIN, None)
        assert small.bytes <= 50_000
    assert len(small) > 10
    while (number := number - 1) >= 0:
        small.drop(digest(number))
    small.drop(digest(999))
    assert (len(small), small.bytes) == (0, 0)


def test_the_collector_need_not_look_at_entries():
    cache = IdentityCache(Clock(), 100_000, 1 << 30)
    before = len(gc.get_objects())
    for number in range(5000):
        cache.put(digest(number), PLAIN._replace(principal=f"user-{number}"), None)
    for _ in range(3):
        gc.collect()
    assert len(gc.get_objects()) - before < 500

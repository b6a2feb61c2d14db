"""Another user of the host, for tests that run as root."""

import os
from contextlib import contextmanager

import pytest

STRANGER = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="plays another user, which takes root")


@contextmanager
def played_by(user):
    """Run the block as another user, in this process."""
    os.setegid(user)
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def let_in(directory):
    """Let every user reach a directory of pytest's, and write into it."""
    for found in list(directory.parents)[:-2]:
        found.chmod(found.stat().st_mode | 0o055)
    directory.chmod(0o777)

"""What holds for all tests."""

import signal

import pytest


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_interrupts():
    """Also where the tests were started in the background, by a shell that has its jobs ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)

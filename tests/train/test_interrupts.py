"""Signals that were held back before a run began."""

import signal

import pytest

from qgoft.train.interrupts import SignalHandler, Stopped


@pytest.fixture
def held():
    """SIGTERM is held back, as in the worker of a sweep; of this thread alone, so the tests send it to this thread."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    yield
    while signal.sigpending() & {signal.SIGTERM}:
        signal.sigwait({signal.SIGTERM})
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_it_arrives_when_the_run_begins(held):
    signal.raise_signal(signal.SIGTERM)  # does nothing yet
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped), SignalHandler():
        pytest.fail("the run began")
    assert signal.getsignal(signal.SIGTERM) is handler
    assert signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_it_arrives_within_and_not_between_runs(held):
    with SignalHandler() as signals, signals.defer():
        signal.raise_signal(signal.SIGTERM)
        assert signals.pending == signal.SIGTERM
    signal.raise_signal(signal.SIGTERM)
    assert signal.sigpending() & {signal.SIGTERM}


def test_the_first_signal_says_who_acts_on_it():
    """A cluster's, ahead of its time limit, has the job queued again, also where saving takes so long that the sweep's own SIGTERM follows."""
    queued = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: queued.append(number))
    try:
        with SignalHandler() as signals:
            with signals.defer():
                signal.raise_signal(signal.SIGUSR2)
                signals._received_at -= 60
                with pytest.raises(Stopped):
                    signal.raise_signal(signal.SIGTERM)
            signals.raise_pending()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert queued == [signal.SIGUSR2]


def test_nothing_is_held_back_where_nothing_was():
    with SignalHandler():
        assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])

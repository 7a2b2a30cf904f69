"""Signals that were blocked before a run started."""

import signal

import pytest

from qgoft.train.interrupts import SignalHandler, Stopped


@pytest.fixture
def held():
    """Block SIGTERM, as in a worker of a sweep. Signals are blocked per thread, so the tests send it to this thread."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    yield
    while signal.sigpending() & {signal.SIGTERM}:
        signal.sigwait({signal.SIGTERM})
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_blocked_signal_arrives_at_run_start(held):
    signal.raise_signal(signal.SIGTERM)  # no effect yet
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped), SignalHandler():
        pytest.fail("the run began")
    assert signal.getsignal(signal.SIGTERM) is handler
    assert signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_signal_is_blocked_between_runs(held):
    with SignalHandler() as signals, signals.defer():
        signal.raise_signal(signal.SIGTERM)
        assert signals.pending == signal.SIGTERM
    signal.raise_signal(signal.SIGTERM)
    assert signal.sigpending() & {signal.SIGTERM}


def test_first_signal_selects_the_handler():
    """A cluster's signal before its time limit requeues the job, also if saving takes so long that the sweep's own SIGTERM follows."""
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


def test_signals_are_not_blocked_by_default():
    with SignalHandler():
        assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])

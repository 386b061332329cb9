import pickle

import pytest

from aiomigrate.transport import (
    BusyError,
    ConnectFailed,
    ConnectionClosed,
    ConnectionLost,
    DescriptorError,
    EndOfStream,
    HandshakeFailed,
    ListenFailed,
    MemoryFault,
    Stalled,
    TransportError,
    errors,
)

PEER = "tcp:10.0.0.7:6000"
SAMPLES: dict[Exception, str] = {
    TransportError(PEER, "open", got="no role"): "open failed: no role",
    TransportError(PEER, "open", expected=2, got=1): "open failed: expected 2, got 1",
    EndOfStream(PEER, "read", expected=16, received=3): "ended the stream after 3 of 16 bytes",
    ConnectionLost(PEER, "write", errno=104, got="Connection reset by peer"): (
        "lost during write: Connection reset by peer"
    ),
    ConnectionClosed(PEER, "read"): "read failed: this side has closed it",
    MemoryFault(PEER, "write"): "write failed: the memory handed to the kernel is not there",
    DescriptorError(PEER, expected=0, got="1"): "no descriptor is due, got 1",
    DescriptorError(PEER, expected=1, got="2"): "one descriptor is due, got 2",
    Stalled(PEER, "read", seconds=30.0, expected=65536, moved=7): (
        "read stalled: 7 bytes in 30 s, at least 65536 were due"
    ),
    ConnectFailed(PEER, ["::1: refused", "127.0.0.1: refused"]): (
        "cannot connect: ::1: refused; 127.0.0.1: refused"
    ),
    HandshakeFailed(PEER, "it is not wanted"): "no TLS connection: it is not wanted",
    ListenFailed(PEER, "Address already in use"): "cannot listen: Address already in use",
    BusyError(PEER, "read"): "two tasks read at once",
}


def test_every_class_has_a_sample() -> None:
    assert {type(error).__name__ for error in SAMPLES} == set(errors.__all__)


@pytest.mark.parametrize(("error", "says"), SAMPLES.items(), ids=lambda s: type(s).__name__)
def test_errors_say_one_sentence_and_survive_pickling(error: Exception, says: str) -> None:
    assert str(error) == f"{PEER}: {str(error).removeprefix(f'{PEER}: ')}"
    assert says in str(error)
    assert "\n" not in str(error)
    error.add_note("a note")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert vars(again) == vars(error)
    assert str(again) == str(error)
    assert vars(again)["connection"] == PEER
    assert vars(again)["what"]

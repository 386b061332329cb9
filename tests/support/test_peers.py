"""The test peers against each other: what one says, the other must take."""

from pathlib import Path

import pytest

from tests.support.captures import ACCEPTED, Cut, load, replay_memory, unpack_offload
from tests.support.image import GuestImage
from tests.support.peer import COMPLETE, CONFIG, MEMORY, STATE, Peer, Script
from tests.support.sender import CaptureSender


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_capture_played_to_the_peer_is_answered_as_the_real_receiver_did(name: str) -> None:
    capture = load(name)
    with Peer(dialect=capture.dialect) as peer, CaptureSender(capture, peer.address) as sender:
        sent = sender.result()
        assert peer.finished() == ("completed" if capture.running else "paused"), peer
    assert sent.problem is None
    assert sent.answers == [stream.answers for stream in capture.streams]
    # A lane without a request may be reset: State may come before its role was read.
    ends = {one.number: sent.ends[one.number] for one in capture.streams if one.requests}
    assert set(ends.values()) == {"eof"}, ends
    assert (peer.config, peer.state) == (capture.config, capture.state)
    assert peer.memory is not None
    assert replay_memory(capture).differences(peer.memory) == []
    assert peer.lost_at_state == []
    assert not peer.busy()
    assert not sender.busy()


@pytest.mark.parametrize("name", ["abandon", "v52_to_head"])
def test_a_migration_that_broke_off_breaks_off(name: str) -> None:
    capture = load(name)
    script = Script(role_within=0.05)
    with (
        Peer(dialect="v53", script=script) as peer,
        CaptureSender(capture, peer.address) as sender,
    ):
        sent = sender.result()
        assert peer.finished() == "failed"
    assert sent.problem is not None
    assert peer.state is None


def test_post_copy_is_played_up_to_its_state() -> None:
    capture = load("postcopy")
    with Peer() as peer, CaptureSender(capture, peer.address) as sender:
        sender.result()
        # As the real one: it cannot tell, drops the fault connection and starts on empty memory.
        assert peer.finished() == "completed"
    assert peer.connections[1].role == 2
    assert peer.count(MEMORY) == 0


@pytest.mark.parametrize("name", ["paused", "two_slots", "v52_four"])
def test_every_cut_fails_the_migration_and_leaves_no_thread(name: str) -> None:
    capture = load(name)
    for cut in capture.cuts():
        if cut.connection and cut.offset > 1 << 21:
            continue  # 64 MiB once are enough
        with (
            Peer(dialect=capture.dialect, script=Script(role_within=0.2)) as peer,
            CaptureSender(capture, peer.address, cut=cut) as sender,
        ):
            sent = sender.result()
            assert peer.finished() == "failed", cut
        assert sent.problem is not None, cut


def test_a_reset_is_seen_as_a_reset() -> None:
    capture = load("paused")
    cut = next(cut for cut in capture.cuts() if "in its content" in cut.where)
    with (
        Peer() as peer,
        CaptureSender(capture, peer.address, cut=cut, ending="reset") as sender,
    ):
        sender.result()
        assert peer.finished() == "failed"
    assert peer.failure is not None
    assert "reset" in peer.failure


def test_a_stalled_sender_waits_for_the_receiver() -> None:
    capture = load("paused")
    cut = Cut(0, 20, "in the header of Config")
    peer = Peer()
    with peer, CaptureSender(capture, peer.address, cut=cut, ending="stall") as sender:
        sender.wait_until_broken_off()
        # Not both ways: what it has not read yet would make a reset of the end.
        peer.connections[0].wire.end_writing()
        sent = sender.result()
    assert sent.ends == ["eof"]
    assert sent.answers == [capture.streams[0].answers[:16]]


@pytest.mark.parametrize("command", [CONFIG, MEMORY, STATE, COMPLETE])
def test_an_error_at_a_command_is_read_by_the_sender(command: int) -> None:
    capture = load("one")
    with (
        Peer(script=Script(error_at=command)) as peer,
        CaptureSender(capture, peer.address) as sender,
    ):
        sent = sender.result()
        assert peer.finished() == "failed"
    assert sent.problem == f"connection 0: Error to command {command}"
    assert sent.answers[0][-16:] == bytes([2, *[0] * 15])


@pytest.mark.parametrize("command", [CONFIG, STATE])
def test_closing_at_a_command_answers_nothing(command: int) -> None:
    capture = load("one")
    with (
        Peer(script=Script(close_at=command)) as peer,
        CaptureSender(capture, peer.address) as sender,
    ):
        sent = sender.result()
    assert sent.problem is not None
    assert b"\2" not in sent.answers[0]
    assert len(sent.answers[0]) < len(capture.streams[0].answers)


def test_held_answers_come_in_order_when_released() -> None:
    capture = load("four")
    with (
        Peer(script=Script(hold_answers=True)) as peer,
        CaptureSender(capture, peer.address) as sender,
    ):
        peer.wait_for_requests(MEMORY, 1)
        assert sum(connection.unanswered for connection in peer.connections) == 1
        assert peer.count(MEMORY) == 1  # the second one waits for the first one's answer
        peer.release()
        assert sender.result().problem is None
        assert peer.finished() == "completed"


@pytest.mark.parametrize("lanes", ["refuse", "close"])
@pytest.mark.parametrize("served", [0, 1])
def test_lanes_that_are_not_taken_fail_the_real_sender(lanes: str, served: int) -> None:
    script = Script(lanes=lanes, lanes_served=served)  # type: ignore[arg-type]
    with Peer(script=script) as peer, CaptureSender(load("four"), peer.address) as sender:
        assert sender.result().problem is not None
        assert peer.finished() == "failed"
    served_lanes = [c for c in peer.connections[1:] if c.role == 1]
    assert len(served_lanes) <= served


def test_one_lane_too_many_fails_state() -> None:
    script = Script(max_lanes=3, hold_answers=True)
    with Peer(script=script) as peer, CaptureSender(load("four"), peer.address) as sender:
        # Else State may come before the last lane, which carries nothing, has been accepted.
        peer.wait_for(lambda: any(connection.error for connection in list(peer.connections)))
        peer.release()
        assert sender.result().problem is not None
        assert peer.finished() == "failed"


def test_the_offload_directory_is_compared_byte_by_byte(tmp_path: Path) -> None:
    directory = unpack_offload(tmp_path)
    image = GuestImage.of_directory(directory)
    assert image.differences_in(directory) == []
    assert (directory / "memory-0").stat().st_blocks * 512 < 4 << 20, "it is sparse"
    page = next(iter(image.slots[0].pages))
    old = image.slots[0].read(page * 4096, 1)
    image.write(page * 4096, bytes([old[0] ^ 1]))
    assert image.differences_in(directory) == [f"slot 0: page {page}: differs"]
    image.write(page * 4096, old)
    hole = next(page for page in range(1 << 14) if page not in image.slots[0].pages)
    image.write(hole * 4096, b"x")
    assert len(image.differences_in(directory)) == 1
    (directory / "memory-0").write_bytes(b"")
    assert "size 0" in image.differences_in(directory)[0]

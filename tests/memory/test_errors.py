"""Every error keeps its facts, says them in one sentence, and can be pickled."""

from __future__ import annotations

import pickle

import pytest

from aiomigrate.memory import errors

CASES: list[tuple[Exception, str]] = [
    (errors.ConfigError("it maps no guest memory"), "the Config cannot be used: it maps no"),
    (errors.DirtyLogError("a log", "a call", 1, "not permitted"), "a log: a call: not permitted"),
    (errors.FramesError("frame 1 is damaged"), "the compressed memory cannot be used: frame 1"),
    (errors.RangeError(3, 0x1000, 5, "is empty"), "range 3 of the table (gpa 0x1000, 5 bytes) is"),
    (errors.GuestMemoryBusyError(2), "guest memory cannot be unmapped: 2 leases are held"),
    (errors.GuestMemoryClaimedError(4096), "a migration under way is sending this guest's memory"),
    (errors.ManifestError("it is not JSON"), "the manifest cannot be used: it is not JSON"),
    (errors.StoredVmError("/vm", "it is in use"), "stored VM /vm: it is in use"),
]


@pytest.mark.parametrize(("error", "text"), CASES)
def test_text_fields_and_pickling(error: Exception, text: str) -> None:
    assert str(error).startswith(text)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))
    assert vars(error)


def test_no_error_is_left_out() -> None:
    assert {type(error).__name__ for error, _ in CASES} == set(errors.__all__)

import pickle

import pytest

from aiomigrate import (
    MigrationCancelled,
    MigrationError,
    MigrationFailed,
    OutcomeUnknown,
    Owner,
    UsageError,
)

_ALL = [
    MigrationFailed("it broke", hint="Try again"),
    MigrationFailed("it broke", Owner.DESTINATION),
    MigrationCancelled("it was cancelled"),
    OutcomeUnknown("the answer was lost", "Look there"),
]


def test_an_error_says_what_who_and_what_to_try() -> None:
    assert [str(error) for error in _ALL] == [
        "it broke; the VM is with the source. Try again",
        "it broke; the VM is with the destination",
        "it was cancelled; the VM is with the source",
        (
            "the answer was lost; it is unknown who has the VM: it is paused at the source and may "
            "be running at the destination. Look there"
        ),
    ]


@pytest.mark.parametrize("error", _ALL, ids=lambda error: type(error).__name__)
def test_an_error_survives_pickling(error: MigrationError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (again.what, again.owner, again.hint) == (error.what, error.owner, error.hint)


def test_families() -> None:
    assert issubclass(MigrationCancelled, MigrationFailed)
    assert not issubclass(OutcomeUnknown, MigrationFailed)
    assert issubclass(UsageError, ValueError)
    assert not issubclass(UsageError, MigrationError)

import threading
from collections.abc import Mapping
from typing import Any

from aiomigrate.cli.output import Output


class Slow:
    """A view that is as slow as the test wants."""

    def __init__(self) -> None:
        self.told: list[Mapping[str, Any]] = []
        self.entered = threading.Event()
        self.free = threading.Event()

    def tell(self, event: Mapping[str, Any]) -> None:
        self.entered.set()
        assert self.free.wait(10)
        self.told.append(event)

    def say(self, sentence: str) -> None:
        self.told.append({"event": "sentence", "text": sentence})

    def close(self) -> None:
        self.told.append({"event": "closed"})


def test_a_slow_view_holds_nobody_up_and_misses_only_progress() -> None:
    view = Slow()
    with Output(view) as output:
        output.progress({"number": 0})
        assert view.entered.wait(10)
        for number in range(1, 100):
            output.progress({"number": number})  # returns, though the view is stuck
        output.tell("report", bytes=7)
        output.say("that was it")
        view.free.set()
    assert view.told == [
        {"event": "progress", "number": 0},
        {"event": "progress", "number": 99},
        {"event": "report", "bytes": 7},
        {"event": "sentence", "text": "that was it"},
        {"event": "closed"},
    ]

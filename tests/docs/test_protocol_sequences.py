import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from aiomigrate.protocol import Command
from aiomigrate.protocol.tables import SOURCE_MAIN, MainState, Signal
from docs import protocol_sequences
from docs.make_protocol_sequences import PAGE, PICTURES, draw, main, render
from docs.protocol_sequences import SEQUENCES, Does, Sequence, Step, answer, ask, back, call, play

STALE = "docs/protocol-sequences.md is stale: run `python -m docs.make_protocol_sequences`"
BY_NAME = {sequence.name: sequence for sequence in SEQUENCES}


def states(name: str, *, at_source: bool, of: str = "main") -> list[str]:
    """Those of a connection, in order."""
    return [
        state
        for _, mine, connection, state in play(BY_NAME[name]).states
        if mine is at_source and connection == of
    ]


def test_the_page_is_what_the_scripts_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(), STALE


@pytest.mark.parametrize("sequence", SEQUENCES, ids=lambda sequence: sequence.name)
def test_a_picture_is_what_the_tables_make_of_its_script(sequence: Sequence) -> None:
    picture = (PICTURES / f"sequence-{sequence.name}.svg").read_text(encoding="utf-8")
    assert picture == draw(sequence), STALE
    texts = {text.strip() for text in ET.fromstring(picture).itertext()}  # noqa: S314 - ours
    assert sequence.title in texts
    for arrow in play(sequence).arrows:
        assert any(text.endswith(arrow.label) for text in texts)


def test_the_states_are_those_of_the_tables() -> None:
    flight = states("one-flight", at_source=True)
    assert flight[-6:] == [
        "Restoring", "InFlight", "Completing", "Completed", "Confirming", "Confirmed",
    ]  # fmt: skip
    assert states("lost-lane", at_source=False)[-2:] == ["Retiring", "Configured"]
    assert states("ownership-query", at_source=True)[-1] == "Completing"
    assert states("ownership-query", at_source=False)[-1] == "Completed"


def test_pages_are_asked_for_by_the_destination() -> None:
    serving = states("post-copy", at_source=True, of="fault")
    assert serving == ["Serving", *["Answering", "Serving"] * 3, "Closed"]
    assert set(states("post-copy", at_source=False, of="fault")) == {"Serving", "Closed"}
    arrows = [arrow for arrow in play(BY_NAME["post-copy"]).arrows if arrow.connection == "fault"]
    assert {(arrow.label, arrow.from_source) for arrow in arrows} == {
        ("role", True), ("PageFault", False), ("Ok", True), ("close", False),
    }  # fmt: skip


def test_a_changed_table_changes_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {**SOURCE_MAIN, (MainState.ESTABLISHED, Command.START): MainState.NAMING}
    kinds = protocol_sequences._TABLES
    monkeypatch.setitem(kinds, "main", (table, *kinds["main"][1:]))
    picture = (PICTURES / "sequence-one-connection.svg").read_text(encoding="utf-8")
    assert "Naming" not in picture
    assert "Naming" in draw(BY_NAME["one-connection"])


@pytest.mark.parametrize(
    "steps",
    [
        call("main", Command.CONFIG),
        call("main", Command.START, Command.STATE),
        call("main", Command.START, Command.CONFIG, Command.STATE, Command.MEMORY),
        call("lane 1", Command.STATE),
        [*ask("fault", Signal.ROLE), *call("fault", Command.PAGE_FAULT)],
        back(ask("fault", Signal.ROLE)) + call("fault", Command.PAGE_FAULT),
        [*ask("main", Command.START), *answer("main"), *answer("main")],
        [Step(Does.ASKS, "main", Command.START)],
        [Step(Does.ANSWERS, "main", Signal.OK)],
        [Step(Does.ASKS, "main")],
    ],
)
def test_what_the_tables_do_not_take_cannot_be_drawn(steps: list[Step]) -> None:
    with pytest.raises(ValueError, match=r"no input|under way|too little"):
        play(Sequence("x", "X", "", steps))


def test_after_an_error_there_is_nothing_more() -> None:
    steps = [*ask("main", Command.START), *answer("main", Signal.ERROR)]
    assert [state for _, _, _, state in play(Sequence("x", "X", "", steps)).states][-1] == "Failed"
    with pytest.raises(ValueError, match="no input of Failed"):
        play(Sequence("x", "X", "", steps + call("main", Command.CONFIG)))


def test_main_writes_the_page_and_its_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("docs.make_protocol_sequences.PAGE", tmp_path / "page.md")
    monkeypatch.setattr("docs.make_protocol_sequences.PICTURES", tmp_path / "pictures")
    main()
    named = re.findall(r"\(pictures/([\w.-]+)\)", (tmp_path / "page.md").read_text())
    assert sorted(named) == sorted(path.name for path in (tmp_path / "pictures").iterdir())

"""`aiomigrate outcome`: who owns a VM whose migration was cut short."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from aiomigrate.cli.journals import default_journal
from aiomigrate.cli.logs import LogFormat, configure
from aiomigrate.cli.status import ExitStatus, complain, status_of
from aiomigrate.cli.text import one_line

if TYPE_CHECKING:
    from aiomigrate.journal import Record
    from aiomigrate.outcome import Finding

__all__ = ["run"]


def run(
    what: str | None, journal: str | None, *, asks: bool, tls_dir: str | None, as_json: bool
) -> ExitStatus:
    """Print what is known of one migration, of a VM's, or of all."""
    configure(LogFormat.AUTO, 0)
    from aiomigrate import outcome

    place = journal or default_journal()
    try:
        found = outcome.find_all(place) if what is None else outcome.find(place, what)
        if asks:
            found = [asyncio.run(outcome.ask(place, finding, tls_dir=tls_dir)) for finding in found]
    except Exception as error:
        complain(error, verbosity=0)
        return status_of(error, begun=False)
    if as_json:
        print(json.dumps([_as_dict(finding) for finding in found], indent=2))
    else:
        for line in _lines(place, found):
            print(one_line(line))
    settled = all(finding.settled for finding in found)
    return ExitStatus.DONE if settled else ExitStatus.UNKNOWN


def _as_dict(finding: "Finding") -> dict[str, Any]:
    return {
        "migration": finding.migration,
        "owner": finding.owner,
        "why": finding.why,
        "advice": finding.advice,
        "records": [_record(record) for record in finding.records],
    }


def _record(record: "Record") -> dict[str, Any]:
    """All of it but the token, which is a secret."""
    return {
        "side": record.side,
        "peer": record.peer,
        "ownership": record.ownership,
        "vm": record.vm,
        "stored": record.stored,
        "state": record.state,
        "began": record.began.isoformat(),
        "changed": record.changed.isoformat(),
    }


def _lines(journal: str, found: "Sequence[Finding]") -> Iterator[str]:
    if not found:
        yield f"no migrations in {journal}"
    for finding in found:
        yield f"{finding.migration}  {_VERDICTS[finding.owner]}: {finding.why}"
        for record in finding.records:
            way = "to" if record.side == "source" else "from"
            vm = f"{record.vm}, " if record.vm else ""
            yield f"  {record.side}: {vm}{way} {record.peer}, {record.changed.isoformat()}"
        if finding.advice:
            yield f"  {finding.advice}"


_VERDICTS = {
    "source": "the VM is with the source",
    "destination": "the VM is with the destination",
    "unknown": "it is unknown who has the VM",
}

"""Who owns a VM whose migration was cut short: what the journals say, and the peer.

A record says what may have become of the VM or what did. The directory of a stored VM is more than
its record: it appears, by one durable rename, exactly when the VM is taken over, so for a
destination that died in between its presence decides, and so does that of what was to be renamed,
which has the migration's id in its name. With neither there it may have been moved or removed:
nothing is proved. Where both sides' records lie in one journal either may settle it. A source's
doubt that nothing here settles is settled by asking the destination, if it still lives.

All but `ask` waits for the disk: not to be called on an event loop.
"""

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from aiomigrate.credentials import source_identity
from aiomigrate.errors import Owner, UsageError
from aiomigrate.executor import JobExecutor
from aiomigrate.inquiry import NoVerdict, Told, ask_owner
from aiomigrate.journal import (
    ID_PATTERN,
    Journal,
    JournalError,
    Record,
    Side,
    Standing,
    list_journal,
    read_record,
)
from aiomigrate.memory.directory import leftovers, partial_name, taken_by
from aiomigrate.memory.errors import StoredVmError
from aiomigrate.protocol import Verdict
from aiomigrate.transport import parse_address

__all__ = ["Finding", "ask", "find", "find_all"]

_OWNERS = {
    Standing.THEIRS: Owner.DESTINATION,
    Standing.OURS: Owner.SOURCE,
    Standing.OWNED: Owner.DESTINATION,
    Standing.CONFIRMED: Owner.DESTINATION,
    Standing.ABORTED: Owner.SOURCE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What is known of one migration."""

    migration: str
    """Its id."""
    owner: Owner
    """The side that may run the VM."""
    why: str
    """What says so, as half a sentence."""
    advice: str = ""
    """What would settle it, or what is left to do; may be empty."""
    records: tuple[Record, ...] = ()
    """Of the source, of the destination, as far as they are in this journal."""

    @property
    def settled(self) -> bool:
        """Whether the owner is known."""
        return self.owner is not Owner.UNKNOWN


@dataclass(frozen=True, slots=True)
class _Claim:
    """What one record says by itself."""

    owner: Owner
    why: str
    advice: str = ""


def find_all(journal: str | os.PathLike[str]) -> list[Finding]:
    """Every migration of a journal, by id. JournalError if the directory cannot be read."""
    judged = (_judge(journal, name, files) for name, files in list_journal(journal).items())
    return [finding for finding in judged if finding is not None]


def find(journal: str | os.PathLike[str], what: str) -> list[Finding]:
    """The migrations that `what` names: one by its id, or those of a VM, by what the journal calls
    it (the path of a stored one).

    UsageError if there is none; JournalError if the directory cannot be read.
    """
    if ID_PATTERN.fullmatch(what):
        found = [finding for finding in find_all(journal) if finding.migration == what]
    else:
        names = {what, os.path.abspath(what)}
        found = [
            finding
            for finding in find_all(journal)
            if any(record.vm in names for record in finding.records)
        ]
    if not found:
        raise UsageError(f"{os.fspath(journal)}: no migration of {what} is in this journal")
    return found


async def ask(
    journal: str | os.PathLike[str],
    finding: Finding,
    *,
    within: float = 10.0,
    tls_dir: str | os.PathLike[str] | None = None,
) -> Finding:
    """Settle a source's doubt by asking its destination, for `within` seconds; the answer is
    written into the journal.

    The question is a fence: a destination that has not begun to take the VM over never will. What
    cannot be asked, or gives no answer, stays as it is, with the reason in `why`. `tls_dir` is the
    source's, where it migrated with one; UsageError if it is of no use.
    """
    record = next((one for one in finding.records if one.side is Side.SOURCE), None)
    if finding.settled or record is None or not record.ownership:
        return finding
    with JobExecutor() as jobs:
        if await jobs.run(_is_held, journal, record):
            return finding
        try:
            async with _asking(record, tls_dir, within) as (verdict, connection):
                state = Standing.THEIRS if verdict is Verdict.COMMITTED else Standing.OURS
                try:
                    await jobs.run(_write, journal, record.now(state))
                except JournalError as error:
                    return replace(
                        finding,
                        owner=_OWNERS[state],
                        why=f"{record.peer} says that it has {verdict.name.lower()}",
                        advice=f"That is not noted: {error}",
                    )
                connection.close()
        except NoVerdict as error:
            return replace(finding, why=f"{finding.why}; asked, but {error}")
        return (await jobs.run(find, journal, finding.migration))[0]


@asynccontextmanager
async def _asking(
    record: Record, tls_dir: str | os.PathLike[str] | None, within: float
) -> AsyncIterator[Told]:
    """What the destination says; to be noted, and its connection closed."""
    address = parse_address(record.peer)
    identity = await source_identity(tls_dir, address)
    try:
        told = await ask_owner(address, record.token, within=within, identity=identity)
        try:
            yield told
        finally:
            told.connection.abort()
    finally:
        if identity is not None:
            identity.close()


def _is_held(journal: str | os.PathLike[str], record: Record) -> bool:
    return read_record(journal, record.name)[1]


def _write(journal: str | os.PathLike[str], record: Record) -> None:
    entry = Journal(journal)
    try:
        entry.write(record)
    finally:
        entry.close()


def _judge(journal: str | os.PathLike[str], migration: str, files: Sequence[str]) -> Finding | None:
    """None if its records went meanwhile (`pruning`): nobody needs them."""
    records: list[Record] = []
    claims: list[_Claim] = []
    for name in reversed(files):  # the source's first
        try:
            record, held = read_record(journal, name)
        except JournalError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                claims.append(_Claim(Owner.UNKNOWN, str(error), "Look at that file"))
        else:
            records.append(record)
            claims.append(_claim(record, held=held))
    if not claims:
        return None
    settled = [claim for claim in claims if claim.owner is not Owner.UNKNOWN]
    decisive = settled or claims
    owner = decisive[0].owner
    advice = decisive[0].advice
    if len({claim.owner for claim in settled}) > 1:
        owner = Owner.UNKNOWN
        advice = "The two records contradict each other: see where the VM runs before anything else"
    return Finding(
        migration=migration,
        owner=owner,
        why="; ".join(claim.why for claim in decisive),
        advice=advice,
        records=tuple(records),
    )


def _claim(record: Record, *, held: bool) -> _Claim:
    owner = _OWNERS.get(record.state)
    if owner is not None:
        return _Claim(owner, f"the {record.side} noted: {record.state}")
    if held:
        return _Claim(
            Owner.UNKNOWN,
            f"the {record.side}'s process is still at work on it",
            "Wait until that has ended",
        )
    why = f"the {record.side} ended before it noted more than: {record.state}"
    if record.side is Side.SOURCE:
        return _doubt_at_source(record, why)
    if record.stored:
        return _directory(record, why)
    return _Claim(Owner.UNKNOWN, why, f"See whether {record.vm or 'the VM'} runs here")


def _doubt_at_source(record: Record, why: str) -> _Claim:
    if record.ownership:
        advice = (
            f"Ask the destination, {record.peer}: aiomigrate outcome {record.id} --ask. If it "
            f"lives no more, its journal knows: aiomigrate outcome {record.id} on its machine"
        )
    else:
        advice = f"See whether it runs at {record.peer}, which cannot be asked"
    return _Claim(Owner.UNKNOWN, why, advice)


def _directory(record: Record, why: str) -> _Claim:
    """Its presence decides: the rename is atomic, and durable before the source is answered."""
    try:
        taken = taken_by(record.vm, record.id)
    except StoredVmError as error:
        return _Claim(Owner.UNKNOWN, f"{why}; {error}", "Look at that directory")
    if taken:
        return _Claim(Owner.DESTINATION, f"{why}; its directory {record.vm} stands")
    parent, name = os.path.split(record.vm)
    if not os.path.isdir(parent):  # it was there when the record was written
        advice = f"See that {parent} is there, and the file system that it is on is mounted"
        return _Claim(Owner.UNKNOWN, f"{why}; {parent} is not there", advice)
    rest = os.path.join(parent, partial_name(name, record.id))
    if rest in leftovers(record.vm):  # what another migration has left of that name says nothing
        return _Claim(
            Owner.SOURCE,
            f"{why}; the directory {record.vm} was never made by it",
            f"What is left of it can be removed: {rest}",
        )
    advice = (
        f"Was {record.vm} moved or removed since {record.began}? If so, the VM was taken over; if "
        "not, it is the source's, and what was left of it was cleaned up"
    )
    return _Claim(Owner.UNKNOWN, f"{why}; neither {record.vm} nor a rest of it is there", advice)

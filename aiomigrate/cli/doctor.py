"""`aiomigrate doctor`: what `machine` finds, for a person or as JSON."""

import json
import logging
from dataclasses import asdict

from rich.console import Console
from rich.text import Text

from aiomigrate.cli.machine import Finding, Level, probe_all
from aiomigrate.cli.status import ExitStatus

__all__ = ["run"]

_STYLES = {Level.OK: "green", Level.WARNING: "yellow", Level.MISSING: "bold red"}


def run(*, as_json: bool) -> ExitStatus:
    """Print all findings."""
    # What the cache would warn of is a finding here.
    logging.getLogger("aiomigrate").addHandler(logging.NullHandler())
    findings = probe_all()
    fatal = [finding for finding in findings if _is_fatal(finding)]
    if as_json:
        document = {"ready": not fatal, "findings": [asdict(finding) for finding in findings]}
        print(json.dumps(document, indent=2))
    else:
        _print(findings, ready=not fatal)
    return ExitStatus.FAILED if fatal else ExitStatus.DONE


def _is_fatal(finding: Finding) -> bool:
    return finding.required and finding.level is Level.MISSING


def _print(findings: list[Finding], *, ready: bool) -> None:
    console = Console(highlight=False, soft_wrap=True)
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        line = Text(f"{finding.level.value:8}", _STYLES[finding.level])
        line.append(f"{finding.name:{width}}  ", "bold")
        line.append(finding.found, "default")
        console.print(line)
        indent = " " * (8 + width + 2)
        if finding.meaning:
            console.print(Text(indent + finding.meaning, "dim"))
        if finding.advice:
            console.print(Text(f"{indent}→ {finding.advice}"))
    console.print()
    console.print(
        Text("This machine can send and receive VMs.", "green")
        if ready
        else Text("Something that every migration needs is missing.", "bold red")
    )

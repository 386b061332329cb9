"""Checking any receiver of the protocol: what it does with orders, cuts, stalls and lies.

Independent of what it checks: it speaks in frames and raw bytes over `transport`, and none of the
engine's cores is used. `plan` lists the checks, `probe` runs them one after the other, each on a
receiver of its own where somebody starts one. docs/probe.md says what is checked, and why.
"""

from aiomigrate.probing.check import Check, Verdict
from aiomigrate.probing.launching import Launch, ShellCommand, Waiting
from aiomigrate.probing.running import CannotProbe, Result, plan, probe
from aiomigrate.probing.vm import ProbeVm

__all__ = [
    "CannotProbe",
    "Check",
    "Launch",
    "ProbeVm",
    "Result",
    "ShellCommand",
    "Verdict",
    "Waiting",
    "plan",
    "probe",
]

"""Runs a real Cloud Hypervisor, where the environment names one.

`CLOUD_HYPERVISOR_BIN` and `CH_REMOTE_BIN` name the programs of one version. The guest is the tiny
one in tests/interop/guest, built with gcc; it needs /dev/kvm.
"""

import contextlib
import json
import os
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

__all__ = [
    "COUNTERS",
    "Guest",
    "Installation",
    "Vmm",
    "find_installation",
    "listens",
    "receiving",
    "work_of",
]

GUEST_BYTES = 64 << 20
COUNTERS_AT = 0x2000000
COUNTERS = 256
"""The guest increments a counter (u32) in each of so many pages, one after the other, for ever.
After each round it writes a byte to its serial port, which counts the rounds.
"""
_MEMORY = ("/memfd:ch_ram", "/memfd:offload-slot-")
"""How its memory is called: its own, and what an offload daemon passed it."""
_WITHIN_S = 60.0
_POLL_S = 0.02
_SOURCES = Path(__file__).parent.parent / "interop" / "guest"


@dataclass(frozen=True)
class Guest:
    """The guest's kernel and the shim, built."""

    kernel: Path
    shim: Path

    @classmethod
    def build(cls, into: Path, name: str = "slow") -> "Guest":
        """Assemble, link and compile into a directory. The guest `slow` counts, `idle` halts."""
        code, kernel, shim = into / f"{name}.o", into / f"{name}.elf", into / "kvm_no_nested.so"
        for command in (
            ["gcc", "-c", "-m64", str(_SOURCES / f"{name}.S"), "-o", str(code)],
            ["ld", "-T", str(_SOURCES / "guest.ld"), str(code), "-o", str(kernel)],
            ["gcc", "-shared", "-fPIC", "-O2", str(_SOURCES / "kvm_no_nested.c"), "-o", str(shim)],
        ):
            subprocess.run(command, check=True, timeout=_WITHIN_S)
        return cls(kernel, shim)


@dataclass(frozen=True)
class Installation:
    """The programs of one version of Cloud Hypervisor."""

    vmm: str
    remote: str
    version: str
    """As the program says it, e.g. `v52.0`."""

    @property
    def dialect(self) -> str:
        """How its additional connections begin: with roles from v53 on."""
        found = re.match(r"v(\d+)", self.version)
        return "v52" if found is not None and int(found[1]) < 53 else "v53"


def receiving(installation: Installation, guest: Guest, work: Path, address: str) -> str:
    """A shell command that starts an empty VMM, has it wait for a guest, and lives as long."""
    remote = f"{installation.remote} --api-socket api.sock"
    url = address if installation.dialect == "v52" else f"receiver_url={address}"
    return f"""
        cd {work} && rm -f api.sock
        LD_PRELOAD={guest.shim} {installation.vmm} --seccomp false --api-socket api.sock &
        until {remote} ping; do sleep {_POLL_S}; done
        {remote} receive-migration {url}
        wait
    """


def find_installation() -> Installation | str:
    """What the environment names, or why there is nothing."""
    vmm, remote = os.environ.get("CLOUD_HYPERVISOR_BIN"), os.environ.get("CH_REMOTE_BIN")
    if not vmm or not remote:
        return "CLOUD_HYPERVISOR_BIN and CH_REMOTE_BIN do not name a Cloud Hypervisor"
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "/dev/kvm is not there for us"
    said = subprocess.run([vmm, "--version"], capture_output=True, text=True, check=True).stdout
    return Installation(vmm, remote, said.split()[1])


class Vmm:
    """A Cloud Hypervisor process, with our guest if `boots`, else empty. A context manager.

    `serial`: the file that the guest's serial port writes to, wherever it is migrated to.
    """

    def __init__(
        self,
        installation: Installation,
        guest: Guest,
        work: Path,
        *,
        boots: bool,
        serial: Path | None = None,
    ) -> None:
        self._installation = installation
        self._socket = work / "api.sock"
        self._log_path = work / "vmm.log"
        self._environment = {**os.environ, "LD_PRELOAD": str(guest.shim)}
        command = [installation.vmm, "-v", "--seccomp", "false", "--api-socket", str(self._socket)]
        if boots:
            command += ["--kernel", str(guest.kernel), "--cpus", "boot=1"]
            command += ["--memory", f"size={GUEST_BYTES >> 20}M,shared=on"]
            command += ["--serial", f"file={serial}" if serial else "null", "--console", "off"]
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env=self._environment, stdin=subprocess.DEVNULL
            )
        self._receiving: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._wait_for(self._socket.exists, "its API socket")
        if "--kernel" in self._process.args:  # type: ignore[operator]  # a list, as given above
            self._wait_for(lambda: self.state == "Running", "the guest to run")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for process in (self._receiving, self._process):
            if process is not None:
                process.kill()
                process.wait()

    @property
    def log(self) -> str:
        """What it has written so far."""
        return self._log_path.read_text(errors="replace")

    @property
    def state(self) -> str:
        """`Running`, `Paused`, ..., or `` if it has no VM."""
        said = self._remote("info", check=False)
        return str(json.loads(said)["state"]) if said else ""

    @property
    def downtime_ms(self) -> int:
        """What a source wrote about its migration."""
        found = re.search(r"with a downtime of (\d+)ms", self.log)
        assert found is not None, self.log
        return int(found[1])

    @property
    def memory(self) -> Path:
        """A file that is the guest's memory."""
        for link in Path(f"/proc/{self._process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # it has closed one since we looked
                if str(link.readlink()).startswith(_MEMORY):
                    return link
        raise AssertionError("no guest memory among the descriptors")

    @property
    def work(self) -> int:
        """How much the guest has worked so far, by its memory."""
        return work_of(self.memory)

    def wait_work(self, more_than: int) -> None:
        """Wait until the guest has worked more than that."""
        self._wait_for(lambda: self.work > more_than, f"the guest to work more than {more_than}")

    def pause(self) -> None:
        """Pause the guest."""
        self._remote("pause")

    def resume(self) -> None:
        """Let the guest run on."""
        self._remote("resume")

    def snapshot(self, into: Path) -> None:
        """Write a `file://` snapshot of the paused guest into a directory, which must be there."""
        self._remote("snapshot", f"file://{into}")

    def restore(self, source: Path) -> None:
        """Take the guest of a `file://` snapshot, paused."""
        self._remote("restore", f"source_url=file://{source}")

    def send(self, address: str, connections: int, tls_dir: Path | None = None) -> None:
        """Begin to migrate the guest; v52's client waits for the end, later ones do not."""
        argument = f"destination_url={address},connections={connections}"
        self._remote("send-migration", argument + _tls(tls_dir))

    def send_memory(self, address: str, *, preserve: bool = False) -> None:
        """Begin to give the guest away, its memory by descriptor; with `preserve` it stays here
        too, paused.
        """
        options = ",preserve_source=on" if preserve else ""
        self._remote("send-migration", f"destination_url={address},local=on{options}")

    def receive(
        self, address: str, tls_dir: Path | None = None, *, on_demand: bool = False
    ) -> None:
        """Wait for a guest, in the background; `on_demand`: its memory comes as it is missed."""
        old = self._installation.dialect == "v52"
        argument = address if old else f"receiver_url={address}{_tls(tls_dir)}"
        argument += ",memory_mode=postcopy" if on_demand else ""
        with (self._log_path.parent / "receive.log").open("wb") as log:
            self._receiving = subprocess.Popen(
                [*self._client(), "receive-migration", argument], stdout=log, stderr=log
            )
        self._wait_for(lambda: listens(address), f"a listener at {address}")

    def wait_received(self) -> None:
        """Wait until the migration is over; AssertionError with the logs if it failed."""
        assert self._receiving is not None
        status = self._receiving.wait(_WITHIN_S)
        said = (self._log_path.parent / "receive.log").read_text(errors="replace")
        assert status == 0, f"receive-migration: {status}\n{said}\n{self.log}"

    def wait_ended(self) -> None:
        """Wait until the process has ended, as a source's does after a migration."""
        assert self._process.wait(_WITHIN_S) == 0, self.log

    def _client(self) -> list[str]:
        return [self._installation.remote, "--api-socket", str(self._socket)]

    def _remote(self, *arguments: str, check: bool = True) -> str:
        done = subprocess.run(
            [*self._client(), *arguments],
            capture_output=True,
            text=True,
            timeout=_WITHIN_S,
            check=False,
        )
        assert not check or done.returncode == 0, f"{arguments}: {done.stderr}\n{self.log}"
        return done.stdout if done.returncode == 0 else ""

    def _wait_for(self, holds: Any, what: str) -> None:
        """Another program's state can only be polled."""
        end = time.monotonic() + _WITHIN_S
        while not holds():
            assert self._process.poll() is None, f"it ended while we waited for {what}:\n{self.log}"
            assert time.monotonic() < end, f"no {what} in {_WITHIN_S:g} s:\n{self.log}"
            time.sleep(_POLL_S)


def _tls(tls_dir: Path | None) -> str:
    return "" if tls_dir is None else f",tls_dir={tls_dir}"


def listens(address: str) -> bool:
    """Whether somebody listens on an IPv4 port or a unix socket; connecting would begin the
    migration.
    """
    scheme, _, rest = address.partition(":")
    with contextlib.suppress(OSError):
        if scheme == "unix":  # its flags have __SO_ACCEPTCON (proc_net_unix(5))
            lines = Path("/proc/net/unix").read_text().splitlines()
            return any(
                line.endswith(f" {rest}") and line.split()[3] == "00010000" for line in lines
            )
        port = int(rest.rpartition(":")[2])
        lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
        return any(
            line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A" for line in lines
        )
    return False


def work_of(memory: Path) -> int:
    """How much a guest has worked: the sum of its counters, read from a file of its memory."""
    total = 0
    with memory.open("rb") as file:
        for page in range(COUNTERS):
            file.seek(COUNTERS_AT + page * 4096)
            total += int.from_bytes(file.read(4), "little")
    return total

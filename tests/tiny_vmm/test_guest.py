"""The guest of aiomigrate.tiny_vmm notices by itself what is wrong with its memory."""

import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from aiomigrate.tiny_vmm import guest
from aiomigrate.tiny_vmm.migrate import VmSource
from aiomigrate.tiny_vmm.vmm import Power
from tests.support.tiny import FIRST, KINDS, PASS, SerialLine, booted, check, machine

TINY = Path(__file__).resolve().parents[2] / "aiomigrate" / "tiny_vmm"
OWN_PAGE = FIRST + 5 * guest.PAGE
DEVICES_PAGE = FIRST + 16 * guest.PAGE


def test_the_code_is_its_source_assembled(tmp_path: Path) -> None:
    for tool in ("as", "ld"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} (binutils) is not installed")
    binary, made = tmp_path / "guest.bin", tmp_path / "guest.o"
    subprocess.run(["as", "--32", "-o", made, TINY / "guest.s"], check=True)
    link = ["ld", "-m", "elf_i386", "-e", "0x1000", "-Ttext=0x1000", "--oformat", "binary"]
    subprocess.run([*link, "-o", binary, made], check=True)
    assert binary.read_bytes() == guest.CODE


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("no_leaks")
async def test_it_counts_while_memory_is_as_it_should_be(kind: str) -> None:
    line = SerialLine()
    async with booted(kind, line) as vm:
        await line.tick(3 * PASS)
        for _ in range(10):  # wherever it is stopped, it goes on from there
            await vm.pause()
            lines = list(line.lines)
            vm.capture()
            assert line.lines == lines
            vm.resume()
            await line.tick(3)
        assert vm.power is Power.ON
    check(line.lines)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("page", [OWN_PAGE, DEVICES_PAGE], ids=["its own", "the device's"])
@pytest.mark.parametrize("verdict", ["lost", "old"])
async def test_it_finds_a_page_that_changed_behind_its_back(
    kind: str, page: int, verdict: str
) -> None:
    line = SerialLine()
    async with booted(kind, line) as vm:
        await line.tick(2 * PASS)
        await vm.pause()
        vm.capture()  # nothing is left to the device that would mend it
        memory = vm.ram.memory
        if verdict == "lost":
            memory[page : page + guest.PAGE] = bytes(guest.PAGE)
        else:
            number = int.from_bytes(memory[page : page + 4], "little")
            for address, data in guest.stamp(number - 1, page):
                memory[address : address + len(data)] = data
        vm.resume()
        assert await vm.ended() is Power.PANIC
    assert line.lines[-1] == f"{verdict} {page:08x}"
    check(line.lines[:-1])


@pytest.mark.parametrize("kind", KINDS)
async def test_half_a_page_is_a_lost_page(kind: str) -> None:
    line = SerialLine()
    async with booted(kind, line) as vm:
        await line.tick(2 * PASS)
        await vm.pause()
        half = OWN_PAGE + guest.PAGE // 2
        vm.ram.memory[half : OWN_PAGE + guest.PAGE] = bytes(guest.PAGE // 2)
        vm.resume()
        assert await vm.ended() is Power.PANIC
    assert line.lines[-1] == f"lost {OWN_PAGE:08x}"


@pytest.mark.parametrize("kind", KINDS)
async def test_it_boots_again_and_powers_off(kind: str) -> None:
    line = SerialLine()
    async with booted(kind, line) as vm:
        await line.tick(2 * PASS)
        vm.press(guest.RESET)
        await line.boots(2)
        await line.tick(2 * PASS)
        vm.press(guest.POWER_OFF)
        assert await vm.ended() is Power.OFF
        vm.resume()  # there is nothing to resume
        await vm.pause()
    check(line.lines)
    assert line.lines.count("booted") == 2


class Rests(threading.Event):
    """Notes how long its timer is to let the guest rest."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.asked.append(timeout)
        return super().wait(timeout)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_throttled_guest_rests_for_longer(kind: str) -> None:
    line = SerialLine()
    async with machine(kind, line) as vm:
        rests = vm._awake = Rests()
        vm.resume()
        await line.tick(PASS)
        await vm.pause()
        assert set(rests.asked) == {0.001}
        rests.asked.clear()
        await VmSource(vm).throttle(50)
        vm.resume()
        await line.tick(PASS)
        await vm.pause()
        assert min(rests.asked) > 0.001
        await VmSource(vm).throttle(0)
        rests.asked.clear()
        vm.resume()
        await line.tick(PASS)
        assert set(rests.asked) == {0.001}
    check(line.lines)


@pytest.mark.parametrize("kind", KINDS[:1])
@pytest.mark.usefixtures("no_leaks")
async def test_a_cpu_that_fails_says_so(kind: str) -> None:
    line = SerialLine()
    async with booted(kind, line) as vm:
        await line.tick(1)
        await vm.pause()
        vm.ram.memory[guest.ENTRY : guest.ENTRY + guest.PAGE] = b"\xff" * guest.PAGE
        vm.resume()
        with pytest.raises(RuntimeError, match="exit reason 8"):  # KVM_EXIT_SHUTDOWN
            await vm.ended()
        with pytest.raises(RuntimeError, match="exit reason 8"):
            await vm.pause()


@pytest.mark.parametrize("kind", KINDS)
async def test_it_goes_on_in_the_middle_of_a_line(kind: str) -> None:
    line = SerialLine()
    async with booted(kind, line) as before, booted(kind, line) as after:
        await before.pause()
        await after.pause()
        before.serial.line = "half a "
        after.restore(before.capture())
        after.serial.write(b"line\n")
    assert line.lines[-1] == "half a line"


@pytest.mark.parametrize("path", sorted(TINY.glob("*.*")), ids=lambda path: path.name)
def test_its_files_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 250

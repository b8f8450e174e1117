"""Numbers that differ between architectures: those of the process count, not of the machine."""

from __future__ import annotations

import struct
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synplug.kernel import abi
from synplug.kernel.abi import (
    Architecture,
    Machine,
    architecture,
    architecture_of,
    bpf_number,
    buffer_force_options,
    membarrier_number,
)


def header(machine: int, *, wide: bool, big: bool = False, flags: int = 0) -> bytes:
    """``Elf32_Ehdr`` or ``Elf64_Ehdr`` of elf(5), and what follows it."""
    order, word = (">" if big else "<"), ("Q" if wide else "I")
    start = b"\x7fELF" + bytes((2 if wide else 1, 2 if big else 1, 1)) + bytes(9)
    rest = struct.pack(f"{order}HHI{word}{word}{word}I6H", 3, machine, 1, 2, 3, 4, flags, *range(6))
    return (start + rest).ljust(64, b"\xaa")


#: __NR_membarrier of <asm/unistd.h>, by Debian's names of its architectures.
NUMBERS = [
    ("amd64", header(62, wide=True), 324),
    ("i386", header(3, wide=False), 375),
    ("x32", header(62, wide=False), 0x40000000 + 324),
    ("arm64", header(183, wide=True), 283),
    ("armhf, armel", header(40, wide=False, flags=0x05000400), 389),
    ("ppc64el", header(21, wide=True, flags=2), 365),
    ("ppc64", header(21, wide=True, big=True), 365),
    ("powerpc", header(20, wide=False, big=True), 365),
    ("s390x", header(22, wide=True, big=True), 356),
    ("riscv64", header(243, wide=True, flags=5), 283),
    ("loong64", header(258, wide=True, flags=0x43), 283),
    ("mips64el", header(8, wide=True, flags=0x80000007), 5318),
    ("mipsn32el", header(8, wide=False, flags=0x80000027), 6322),
    ("mipsel", header(8, wide=False, flags=0x70001007), 4358),
    ("hppa", header(15, wide=False, big=True), 343),
    ("m68k", header(4, wide=False, big=True), 374),
    ("sparc64", header(43, wide=True, big=True), 351),
    ("sh4", header(42, wide=False), 378),
    ("alpha", header(0x9026, wide=True), 517),
]


#: __NR_bpf of the same file, where it is known.
BPF = {
    "amd64": 321,
    "i386": 357,
    "x32": 0x40000000 + 321,
    "arm64": 280,
    "armhf, armel": 386,
    "ppc64el": 361,
    "ppc64": 361,
    "s390x": 351,
    "riscv64": 280,
    "loong64": 280,
}


@pytest.mark.parametrize(("name", "program"), [row[:2] for row in NUMBERS])
def test_bpf(name: str, program: bytes) -> None:
    assert bpf_number(architecture_of(program)) == BPF.get(name)


def test_an_unknown_architecture_has_no_bpf() -> None:
    assert bpf_number(None) is None


@pytest.mark.parametrize(("name", "program", "number"), NUMBERS, ids=[row[0] for row in NUMBERS])
def test_membarrier(name: str, program: bytes, number: int) -> None:
    assert membarrier_number(architecture_of(program)) == number


@pytest.mark.parametrize(
    ("machine", "options"),
    [
        (Machine.X86_64, (32, 33)),
        (Machine.AARCH64, (32, 33)),
        (Machine.S390, (32, 33)),
        (Machine.MIPS, (31, 33)),
        (Machine.SPARCV9, (0x100A, 0x100B)),
        (Machine.PARISC, (0x100A, 0x100B)),
        (Machine.ALPHA, (0x100A, 0x100B)),
    ],
)
def test_buffer_options(machine: Machine, options: tuple[int, int]) -> None:
    """SO_SNDBUFFORCE and SO_RCVBUFFORCE of <asm/socket.h>."""
    assert buffer_force_options(Architecture(machine, wide=True)) == options


def test_an_unknown_architecture_makes_no_call_at_all() -> None:
    """Its number might be that of a call that does something."""
    assert membarrier_number(Architecture(0x7777, wide=True)) is None
    assert membarrier_number(None) is None
    assert buffer_force_options(None) == (32, 33)


@given(st.binary(max_size=80))
def test_what_is_no_program_has_no_architecture(data: bytes) -> None:
    assert architecture_of(data) is None
    assert architecture_of(b"\x7fELF\x03\x01" + data) is None


@given(machine=st.integers(0, 0xFFFF), wide=st.booleans(), big=st.booleans())
@pytest.mark.parametrize("flags", [0, 0x12345678])
def test_headers(machine: int, wide: bool, big: bool, flags: int) -> None:
    program = header(machine, wide=wide, big=big, flags=flags)
    assert architecture_of(program) == Architecture(machine, wide, flags)
    assert architecture_of(program[:63]) is None


def test_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    own = architecture()
    assert own is not None
    assert own.wide is (sys.maxsize > 1 << 32)
    monkeypatch.setattr(abi, "_PROGRAM", "/nonexistent")
    assert architecture() == own, "read once"
    assert architecture.__wrapped__() is None

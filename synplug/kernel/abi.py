"""Numbers of the kernel's interface that differ between architectures.

The architecture is that of this process, not of the machine: a 32-bit Python on a 64-bit kernel
makes the calls of the 32-bit one, where a number stands for another call. 324 is membarrier(2) on
x86-64, and fallocate(2) on i386. uname(2) names the machine; the architecture of the process
stands in the header of its program (elf(5)).

Source: ``arch/*/kernel/syscalls/*.tbl``, ``arch/*/include/uapi/asm/socket.h`` and
``include/uapi/linux/elf-em.h``; each architecture of Debian is there, ports included.
"""

import enum
import struct
from functools import lru_cache
from typing import NamedTuple

_PROGRAM = "/proc/self/exe"
_X32_SYSCALL_BIT = 0x40000000
_EF_MIPS_ABI2 = 0x20


class Machine(enum.IntEnum):
    """e_machine of an ELF header."""

    SPARC = 2
    I386 = 3
    M68K = 4
    MIPS = 8
    PARISC = 15
    SPARC32PLUS = 18
    PPC = 20
    PPC64 = 21
    S390 = 22
    ARM = 40
    SH = 42
    SPARCV9 = 43
    X86_64 = 62
    AARCH64 = 183
    ARCV2 = 195
    RISCV = 243
    LOONGARCH = 258
    ALPHA = 0x9026


class Architecture(NamedTuple):
    """For what a program was made.

    :param machine: e_machine; one of :class:`Machine`, or another.
    :param wide: ELFCLASS64. :param flags: e_flags.
    """

    machine: int
    wide: bool
    flags: int = 0


_MEMBARRIER: dict[int, int] = {
    Machine.SPARC: 351,
    Machine.I386: 375,
    Machine.M68K: 374,
    Machine.PARISC: 343,
    Machine.SPARC32PLUS: 351,
    Machine.PPC: 365,
    Machine.PPC64: 365,
    Machine.S390: 356,
    Machine.ARM: 389,
    Machine.SH: 378,
    Machine.SPARCV9: 351,
    Machine.AARCH64: 283,
    Machine.ARCV2: 283,
    Machine.RISCV: 283,
    Machine.LOONGARCH: 283,
    Machine.ALPHA: 517,
}
#: Of those that Debian releases.
_BPF: dict[int, int] = {
    Machine.I386: 357,
    Machine.PPC64: 361,
    Machine.S390: 351,
    Machine.ARM: 386,
    Machine.AARCH64: 280,
    Machine.RISCV: 280,
    Machine.LOONGARCH: 280,
}
_OLD_UNIX = (
    Machine.SPARC,
    Machine.SPARC32PLUS,
    Machine.SPARCV9,
    Machine.PARISC,
    Machine.ALPHA,
)


def membarrier_number(of: Architecture | None) -> int | None:
    """The number of membarrier(2); None where it is not known. glibc has no function for it."""
    if of is None:
        return None
    if of.machine == Machine.X86_64:
        return 324 if of.wide else 324 + _X32_SYSCALL_BIT
    if of.machine == Machine.MIPS:
        if of.wide:
            return 5318
        return 6322 if of.flags & _EF_MIPS_ABI2 else 4358  # n32, o32
    return _MEMBARRIER.get(of.machine)


def bpf_number(of: Architecture | None) -> int | None:
    """The number of bpf(2); None where it is not known. glibc has no function for it."""
    if of is None:
        return None
    if of.machine == Machine.X86_64:
        return 321 if of.wide else 321 + _X32_SYSCALL_BIT
    return _BPF.get(of.machine)


def buffer_force_options(of: Architecture | None) -> tuple[int, int]:
    """SO_SNDBUFFORCE and SO_RCVBUFFORCE, which Python's socket module does not have."""
    if of is not None and of.machine in _OLD_UNIX:
        return 0x100A, 0x100B
    if of is not None and of.machine == Machine.MIPS:
        return 31, 33
    return 32, 33


def attach_filter_option(of: Architecture | None) -> int:
    """SO_ATTACH_FILTER, which Python's socket module does not have."""
    return 0x401A if of is not None and of.machine == Machine.PARISC else 26


@lru_cache(maxsize=1)
def architecture() -> Architecture | None:
    """That of this process; None where it cannot be read."""
    try:
        with open(_PROGRAM, "rb") as file:
            return architecture_of(file.read(64))
    except OSError:
        return None


def architecture_of(header: bytes) -> Architecture | None:
    """What an ELF header says; None where it is none."""
    if len(header) < 64 or header[:4] != b"\x7fELF" or header[4] not in (1, 2):
        return None
    order = "<" if header[5] == 1 else ">"
    wide = header[4] == 2
    (machine,) = struct.unpack_from(f"{order}H", header, 18)
    (flags,) = struct.unpack_from(f"{order}I", header, 48 if wide else 36)
    return Architecture(machine, wide, flags)

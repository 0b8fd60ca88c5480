"""The system-call filter: an allow-list, as a BPF program for the kernel.

Anything that is not listed fails with EPERM. Starting a process or a thread, running another file
and using a foreign system-call table kill the program. Executable memory is refused, so no machine
code can be brought in by its data alone.
"""

from __future__ import annotations

import ctypes
import struct
from typing import NamedTuple

from . import linux

# name -> number on x86_64, number on aarch64; None where the machine has no such call.
_COMMON: dict[str, tuple[int | None, int | None]] = {
    "write": (1, 64),
    "read": (0, 63),
    "brk": (12, 214),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "futex": (202, 98),
    "clock_gettime": (228, 113),
    "clock_nanosleep": (230, 115),
    "nanosleep": (35, 101),
    "gettimeofday": (96, 169),
    "time": (201, None),
    "times": (100, 153),
    "getrusage": (98, 165),
    "clock_getres": (229, 114),
    "readv": (19, 65),
    "writev": (20, 66),
    "close": (3, 57),
    "lseek": (8, 62),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "restart_syscall": (219, 128),
    "sched_yield": (24, 124),
    "getpid": (39, 172),
    "gettid": (186, 178),
    "getppid": (110, 173),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "getrandom": (318, 278),
    "exit": (60, 93),
    "exit_group": (231, 94),
}
# Only for a program that has a folder of its own, and no other file in sight.
_FILES: dict[str, tuple[int | None, int | None]] = {
    "open": (2, None),
    "openat": (257, 56),
    "stat": (4, None),
    "fstat": (5, 80),
    "lstat": (6, None),
    "newfstatat": (262, 79),
    "statx": (332, 291),
    "access": (21, None),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "getdents64": (217, 61),
    "getcwd": (79, 17),
    "chdir": (80, 49),
    "unlink": (87, None),
    "unlinkat": (263, 35),
    "mkdir": (83, None),
    "mkdirat": (258, 34),
    "rmdir": (84, None),
    "rename": (82, None),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "truncate": (76, 45),
    "ftruncate": (77, 46),
    "fsync": (74, 82),
    "fdatasync": (75, 83),
    "pread64": (17, 67),
    "pwrite64": (18, 68),
}
_FATAL: dict[str, tuple[int | None, int | None]] = {
    "clone": (56, 220),
    "clone3": (435, 435),
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
}
# Their third argument is the protection of the memory.
_MAPPING: dict[str, tuple[int | None, int | None]] = {"mmap": (9, 222), "mprotect": (10, 226)}

MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column, audit architecture
_X32 = 0x40000000  # system calls of the x32 table start here

KILL = 0x80000000
ALLOW = 0x7FFF0000
DENY = 0x00050000 | 1  # fails with EPERM

_LOAD, _EQUAL, _AT_LEAST, _BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _PROTECTION = 0, 4, 32  # offsets in struct seccomp_data
_PROT_EXEC = 4


class Instruction(NamedTuple):
    """One BPF instruction: code, jumps when true and when false, operand."""

    code: int
    true: int
    false: int
    operand: int


def build(machine: str, *, files: bool) -> list[Instruction]:
    """The filter for a machine.

    Args:
        machine: "x86_64" or "aarch64".
        files: let through the calls of a program that has a folder of its own.

    Raises:
        KeyError: if the machine is another one.
    """
    column, architecture = MACHINES[machine]
    out = [
        Instruction(_LOAD, 0, 0, _ARCHITECTURE),
        Instruction(_EQUAL, 1, 0, architecture),
        Instruction(_RETURN, 0, 0, KILL),
        Instruction(_LOAD, 0, 0, _NUMBER),
        Instruction(_AT_LEAST, 0, 1, _X32),
        Instruction(_RETURN, 0, 0, KILL),
    ]

    def numbers(table: dict[str, tuple[int | None, int | None]]) -> list[int]:
        return [number for row in table.values() if (number := row[column]) is not None]

    for number in numbers(_MAPPING):
        out += [
            Instruction(_EQUAL, 0, 4, number),
            Instruction(_LOAD, 0, 0, _PROTECTION),
            Instruction(_BITS, 0, 1, _PROT_EXEC),
            Instruction(_RETURN, 0, 0, DENY),
            Instruction(_RETURN, 0, 0, ALLOW),
        ]
    allowed = {**_COMMON, **_FILES} if files else _COMMON
    for action, table in ((ALLOW, allowed), (KILL, _FATAL)):
        for number in numbers(table):
            out += [Instruction(_EQUAL, 0, 1, number), Instruction(_RETURN, 0, 0, action)]
    return [*out, Instruction(_RETURN, 0, 0, DENY)]


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


class Filter:
    """A filter ready to be installed: everything that needs memory is done beforehand."""

    def __init__(self, machine: str, *, files: bool) -> None:
        instructions = build(machine, files=files)
        self._bytes = ctypes.create_string_buffer(
            b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)
        )
        self._program = _Program(len(instructions), ctypes.addressof(self._bytes))

    def install(self) -> None:
        """Put it on this process, for good.

        Raises:
            OSError: if the kernel refuses.
        """
        linux.no_new_privileges()
        linux.prctl(linux.PR_SET_SECCOMP, 2, ctypes.addressof(self._program))

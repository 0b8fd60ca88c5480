"""The few Linux calls that the standard library does not offer, through ctypes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 0x1, 0x2, 0x4, 0x8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 0x20, 0x1000, 0x4000, 0x40000
MNT_DETACH = 2

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_SECCOMP = 22
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
_AMBIENT_CLEAR_ALL = 4

CAP_SYS_ADMIN = 21
_CAPABILITY_VERSION_3 = 0x20080522
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def unshare(flags: int) -> None:
    """Leave the namespaces named by the flags for new ones."""
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare")


def prctl(option: int, first: int = 0, second: int = 0) -> None:
    """Set a property of this process."""
    arguments = [ctypes.c_ulong(value) for value in (first, second, 0, 0)]
    _check(_libc.prctl(ctypes.c_int(option), *arguments), f"prctl {option}")


def no_new_privileges() -> None:
    """From here on, running a file never gives more rights."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def mount(kind: str | None, target: str, flags: int, data: str | None = None) -> None:
    """Mount a file system, or change how one is mounted."""
    name = kind.encode() if kind else None
    options = data.encode() if data else None
    _check(
        _libc.mount(name, os.fsencode(target), name, ctypes.c_ulong(flags), options),
        f"mount {kind or 'flags'} on {target}",
    )


def change_root_to_here() -> None:
    """Make the current folder, a mount point, the root, and let the old root go."""
    number = _PIVOT_ROOT[platform.machine()]
    _check(_libc.syscall(ctypes.c_long(number), b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", ctypes.c_int(MNT_DETACH)), "umount")
    os.chdir("/")


def keep_capabilities(kept: int) -> None:
    """Give up every capability that is not in the mask, now and for later."""
    with contextlib.suppress(OSError):  # without CAP_SETPCAP there is nothing to give up here
        for capability in range(64):
            prctl(PR_CAPBSET_DROP, capability)
    with contextlib.suppress(OSError):  # kernels before 4.3 have no ambient set
        prctl(PR_CAP_AMBIENT, _AMBIENT_CLEAR_ALL)
    set_capabilities(kept)


def set_capabilities(kept: int) -> None:
    """Hold exactly the capabilities of the mask, of those that this process has."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    low, high = kept & 0xFFFFFFFF, kept >> 32
    data = (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)
    _check(_libc.capset(ctypes.byref(header), ctypes.byref(data)), "capset")

"""Cutting the zygote off: an identity without rights, namespaces of its own, an empty file system.

`namespaces` and `bare` are the two ways. The first leaves the process tree, the file system and
the network of the machine; the second can only give up rights, and then the system-call filter of
each program is the wall.
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from collections.abc import Callable

from . import linux

NOBODY = 65534
_SPACES = (
    linux.CLONE_NEWNS
    | linux.CLONE_NEWPID
    | linux.CLONE_NEWNET
    | linux.CLONE_NEWIPC
    | linux.CLONE_NEWUTS
)
FOLDER = "/tmp"  # of a program that may write files, inside its own root
_PLACES = ("/tmp", "/mnt", "/proc")  # where a mount point is likely; hidden, not changed


def user_namespace() -> None:
    """Enter namespaces of which an unprivileged user namespace is the owner.

    Root becomes nobody first, so that not even the owner of the namespaces has rights outside.

    Raises:
        OSError: where the machine does not allow it.
    """
    if os.geteuid() == 0:
        become_nobody()
        linux.prctl(linux.PR_SET_DUMPABLE, 1)  # else root owns /proc/self
    user, group = os.geteuid(), os.getegid()
    linux.unshare(linux.CLONE_NEWUSER | _SPACES)
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{NOBODY} {user} 1"),
        ("gid_map", f"{NOBODY} {group} 1"),
    ):
        with open(f"/proc/self/{name}", "wb") as file:  # a text codec may be out of reach by now
            file.write(text.encode())
    linux.prctl(linux.PR_SET_DUMPABLE, 0)


def root_namespace() -> None:
    """Enter namespaces with the rights of root, where user namespaces are forbidden.

    Raises:
        OSError: without CAP_SYS_ADMIN.
    """
    linux.unshare(_SPACES)


def empty_root(*, folder: bool) -> None:
    """Make an empty read-only file system the root of this mount namespace.

    Args:
        folder: with a mount point for the folders of programs in it.

    Raises:
        OSError: if the kernel refuses; whatever was mounted goes with the namespace.
    """
    linux.mount(None, "/", linux.MS_REC | linux.MS_PRIVATE)
    place = next((path for path in _PLACES if os.path.isdir(path)), "/")
    flags = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
    linux.mount("tmpfs", place, flags, "size=4k,nr_inodes=8,mode=0555")
    if folder:
        os.mkdir(place.rstrip("/") + FOLDER)
    os.chdir(place)
    linux.change_root_to_here()
    linux.mount(None, "/", flags | linux.MS_REMOUNT | linux.MS_BIND | linux.MS_RDONLY)


def own_folder(size: int) -> None:
    """Mount an empty folder of a size for this process alone, and go there."""
    linux.unshare(linux.CLONE_NEWNS)
    flags = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
    linux.mount("tmpfs", FOLDER, flags, f"size={size},nr_inodes=1024,mode=0700")
    os.chdir(FOLDER)


def become_nobody() -> None:
    """Change user and groups to nobody, for good."""
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


def bare() -> None:
    """Without namespaces: as root, go into a folder that no longer exists and become nobody."""
    if os.geteuid() != 0:
        return
    with contextlib.suppress(PermissionError):  # a root that lacks the capabilities stays there
        place = tempfile.mkdtemp()
        above = os.open(os.path.dirname(place), os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.chroot(place)
            os.chdir("/")
        finally:
            os.rmdir(os.path.basename(place), dir_fd=above)
            os.close(above)
    with contextlib.suppress(PermissionError):
        become_nobody()


def works(enter: Callable[[], None]) -> bool:
    """Whether namespaces can be entered and emptied here, tried in processes thrown away."""

    def whole() -> None:
        enter()
        if not _succeeds(lambda: empty_root(folder=True)):  # a child: the first process inside
            raise OSError("the new namespaces cannot be emptied")

    return _succeeds(whole)


def _succeeds(step: Callable[[], None]) -> bool:
    """Whether a step raises no OSError, tried in a child."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            step()
            code = 0
        except OSError:
            pass
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1] == 0


def follow_parent() -> None:
    """Die with the process that started this one, and hide memory from all but root."""
    linux.prctl(linux.PR_SET_DUMPABLE, 0)
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)

"""Programs that try to get out, each for real: with Python, and with raw system calls."""

import json
import os
import platform
import socket
import threading
from pathlib import Path

import psutil
import pytest

from outlay.sandbox import Limits
from outlay.sandbox.jail import seccomp

SECRET = "planted-secret-7f3a9c"
# What an attacker has after going through the interpreter's own objects.
RAW = """
import sys, json
ctypes, posix = sys.modules["ctypes"], sys.modules["posix"]
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def call(number, *arguments):
    ctypes.set_errno(0)
    values = [a if isinstance(a, bytes) else ctypes.c_long(a) for a in arguments]
    result = libc.syscall(ctypes.c_long(number), *values)
    return result if result >= 0 else -ctypes.get_errno()
"""
X86 = platform.machine() == "x86_64"
EPERM, EBADF = 1, 9


@pytest.fixture(autouse=True)
def planted(monkeypatch, tmp_path):
    monkeypatch.setenv("OUTLAY_PLANTED", SECRET)
    (tmp_path / "secret.txt").write_text(SECRET, encoding="utf-8")


def refused(outcome, error):
    assert outcome.status == "error"
    assert outcome.detail.startswith(error), outcome
    assert outcome.stdout == ""


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "~", "/proc/self/environ", "/proc/1/environ", "/dev/null", "."]
)
def test_no_file_can_be_read(sandbox, path):
    target = os.path.expanduser(path)
    refused(sandbox.run(f"print(open({target!r}, 'rb').read())"), "PermissionError")


def test_no_file_can_be_read_by_raw_calls(sandbox, tmp_path):
    code = f"""
path = {str(tmp_path / "secret.txt")!r}.encode()
tries = {{
    "openat": call({257 if X86 else 56}, -100, path, 0),
    "openat2": call(437, -100, path, b"\\0" * 24, 24),
    "statx": call({332 if X86 else 291}, -100, path, 0, 0xFFF, b"\\0" * 256),
    "readlinkat": call({267 if X86 else 78}, -100, b"/proc/self/exe", b"\\0" * 256, 256),
    "memfd_create": call({319 if X86 else 279}, b"x", 0),
    "open_tree": call(428, -100, b"/", 0),
}}
print(json.dumps(tries))
"""
    outcome = sandbox.run(RAW + code)
    assert set(json.loads(outcome.stdout).values()) == {-EPERM}, outcome


def test_no_file_can_be_written(sandbox, tmp_path):
    target = tmp_path / "written"
    refused(sandbox.run(f"open({str(target)!r}, 'w').write('x')"), "PermissionError")
    refused(
        sandbox.run(
            f"import sys\nsys.modules['posix'].mkdir({str(target)!r})",
        ),
        "PermissionError",
    )
    assert not target.exists()


def test_the_parents_environment_is_not_there(sandbox):
    outcome = sandbox.run(
        RAW + "print(dict(posix.environ), dict(sys.modules['os'].environ))\n"
        "libc.getenv.restype = ctypes.c_char_p\n"
        "print(libc.getenv(b'OUTLAY_PLANTED'), libc.getenv(b'HOME'), libc.getenv(b'PATH'))"
    )
    assert outcome.status == "ok"
    assert SECRET not in outcome.stdout
    assert outcome.stdout.splitlines()[1] == "None None None"


def test_the_environment_that_the_kernel_handed_over_is_not_the_parents(sandbox):
    # It lies above the stack, after the arguments, and can be read without /proc.
    code = """
at = ctypes.c_void_p.in_dll(ctypes.CDLL(None), "__libc_stack_end").value
at += 8 * (ctypes.c_long.from_address(at).value + 2)
while pointer := ctypes.c_void_p.from_address(at).value:
    print(ctypes.string_at(pointer).decode().partition("=")[0])
    at += 8
"""
    names = sandbox.run(RAW + code).stdout.split()
    assert "PYTHONHASHSEED" in names
    assert set(names) <= {
        "PYTHONHASHSEED",
        "TZ",
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
    }


def test_only_the_three_streams_are_open(sandbox):
    code = """
found = []
for descriptor in range(3, 1200):
    try:
        posix.read(descriptor, 1)
        found.append(descriptor)
    except OSError as error:
        if error.errno != 9:
            found.append((descriptor, error.errno))
print(found)
"""
    assert sandbox.run(RAW + code).stdout == "[]\n"


def test_a_listener_on_loopback_sees_no_connection(sandbox):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        refused(
            sandbox.run(
                "import sys\nsocket = sys.modules['socket']\n"
                f"socket.socket().connect(('127.0.0.1', {port}))"
            ),
            "PermissionError",
        )
        raw = f"print([call({41 if X86 else 198}, family, 1, 0) for family in (1, 2, 10, 16, 17)])"
        assert sandbox.run(RAW + raw).stdout == f"{[-EPERM] * 5}\n"
        listener.settimeout(0.2)
        with pytest.raises(TimeoutError):
            listener.accept()
        with socket.create_connection(("127.0.0.1", port)):  # the listener does work
            listener.accept()[0].close()


@pytest.mark.parametrize(
    "start",
    [
        "posix.fork()",
        "posix.execv('/bin/sh', ['sh', '-c', 'id'])",
        "posix.system('id')",
        "posix.posix_spawn('/bin/sh', ['sh'], {})",
        "sys.modules['_thread'].start_new_thread(print, ())",
        "libc.fork()",
        f"call({56 if X86 else 220}, 17, 0, 0, 0, 0)",
        "call(435, b'\\0' * 88, 88)",
        f"call({322 if X86 else 281}, -100, b'/bin/sh', 0, 0, 0)",
    ],
)
def test_starting_a_process_or_a_thread_stops_the_program(sandbox, start):
    outcome = sandbox.run(RAW + f"print('before')\n{start}\nprint('after')")
    assert outcome.status == "processes", outcome
    assert outcome.stdout == "before\n"


def test_a_fork_bomb_starts_nothing(sandbox):
    before = len(psutil.pids())
    assert sandbox.run(RAW + "while True: posix.fork()").status == "processes"
    assert len(psutil.pids()) < before + 50


@pytest.mark.skipif(not X86, reason="the other table exists on x86_64 only")
def test_the_x32_table_is_no_way_around(sandbox):
    outcome = sandbox.run(RAW + "print('before')\nprint(call(0x40000000 + 257, -100, b'/', 0))")
    assert outcome.status == "processes"
    assert outcome.stdout == "before\n"


def test_nobody_else_can_be_killed(sandbox):
    parent = os.getpid()
    code = f"""
tries = [call({62 if X86 else 129}, pid, 9) for pid in ({parent}, posix.getppid(), 1, 0, -1)]
tries.append(call({234 if X86 else 131}, {parent}, {parent}, 9))
tries.append(call(434, {parent}, 0))
tries.append(call({101 if X86 else 117}, 16, {parent}, 0, 0))
tries.append(call({310 if X86 else 270}, {parent}, 0, 0, 0, 0, 0))
print(tries)
"""
    outcome = sandbox.run(RAW + code)
    assert outcome.stdout == f"{[-EPERM] * 9}\n", outcome
    assert sandbox.run("print('alive')").stdout == "alive\n"


def test_every_system_call_outside_the_list_fails(sandbox):
    # The kernel lets its own trampolines, uretprobe and uprobe, past all filters; anybody else who
    # calls them gets a fatal signal.
    column, trampolines = (0, [335, 336]) if X86 else (1, [])
    tables = (seccomp._COMMON, seccomp._MAPPING, seccomp._FATAL)
    listed = trampolines + [row[column] for table in tables for row in table.values()]
    code = f"""
listed = {listed!r}
let_through = [n for n in range(1024) if n not in listed and call(n, 0, 0, 0, 0, 0, 0) != -1]
print(let_through)
"""
    outcome = sandbox.run(RAW + code)
    assert outcome.stdout == "[]\n", outcome


def test_limits_and_filter_cannot_be_changed(sandbox):
    code = f"""
import sys
resource = sys.modules["resource"]
for kind in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_NOFILE):
    try:
        resource.setrlimit(kind, (2**40, 2**40))
        print("raised", kind)
    except (OSError, ValueError):
        pass
print([call({157 if X86 else 167}, option, 0, 0, 0, 0) for option in (4, 22, 38)])
print(call({317 if X86 else 277}, 0, 0, 0))
"""
    outcome = sandbox.run(RAW + code)
    assert outcome.stdout == f"{[-EPERM] * 3}\n{-EPERM}\n", outcome


def test_memory_cannot_be_made_executable(sandbox):
    mmap, mprotect = (9, 10) if X86 else (222, 226)
    code = f"""
print(call({mmap}, 0, 4096, 7, 0x22, -1, 0))
plain = call({mmap}, 0, 4096, 3, 0x22, -1, 0)
print(plain > 0, call({mprotect}, plain, 4096, 5), call({mprotect}, plain, 4096, 1))
"""
    assert sandbox.run(RAW + code).stdout == f"{-EPERM}\nTrue {-EPERM} 0\n"


def test_the_process_has_no_rights_and_is_nobody_where_the_parent_is_root(sandbox):
    outcome = sandbox.run(RAW + "print(posix.getuid(), posix.geteuid(), posix.getgid())")
    expected = 65534 if os.geteuid() == 0 else None
    users = {int(word) for word in outcome.stdout.split()}
    assert 0 not in users
    assert expected is None or users == {expected}
    capget = 125 if X86 else 90
    assert sandbox.run(RAW + f"print(call({capget}, 0, 0))").stdout == f"{-EPERM}\n"


def test_going_through_subclasses_finds_modules_but_no_way_out(sandbox):
    code = """
loaders = [c for c in ().__class__.__base__.__subclasses__() if c.__name__ == "_wrap_close"]
system = loaders[0].__init__.__globals__["system"]
print("found", callable(system))
system("id")
"""
    outcome = sandbox.run(code)
    assert (outcome.status, outcome.stdout) == ("processes", "found True\n")


def test_an_escape_through_builtins_import_reaches_no_file(sandbox):
    code = """
real = [c for c in ().__class__.__base__.__subclasses__() if c.__name__ == "catch_warnings"]
builtins = real[0].__init__.__globals__["__builtins__"]
real_import = builtins["__import__"] if isinstance(builtins, dict) else builtins.__import__
print("os" in dir(real_import("os.path")) or real_import("os").name)
real_import("ftplib")
"""
    outcome = sandbox.run(code)
    assert outcome.detail == "ModuleNotFoundError: No module named 'ftplib'", outcome


def test_no_program_finds_the_text_of_an_earlier_one_in_memory(sandbox):
    # The end of the C library's heap, and the pages of all of Python's objects.
    code = """
libc.sbrk.restype = ctypes.c_void_p
heap = ctypes.string_at(libc.sbrk(0) - (1 << 20), 1 << 20)
pages = {id(o) & ~0xFFF for o in sys.modules["gc"].get_objects()}
pools = b"".join(ctypes.string_at(page, 4096) for page in pages)
word = bytes(c ^ 1 for c in FLIPPED)
print(word in heap or word in pools)
"""
    word = b"a-word-of-the-first-program-only"
    flipped = bytes(c ^ 1 for c in word)
    own = sandbox.run(RAW + f"own = {word!r} * 9\n" + code.replace("FLIPPED", repr(flipped)))
    assert own.stdout == "True\n", own  # the search finds what is there
    sandbox.run(f"x = {word.decode()!r} * 2000\nprint(x)", stdin=word.decode() * 1000)
    later = sandbox.run(RAW + code.replace("FLIPPED", repr(flipped)))
    assert later.stdout == "False\n", later


def test_with_a_folder_only_that_folder_is_seen(best):
    code = """
def names(path):
    try:
        return posix.listdir(path)
    except OSError as error:
        return error.errno
print(names("/"), names("."), names("/proc"), names("/etc"), names("/dev"), names(".."))
for path in ("/x", "/etc/passwd", "/proc/self/environ", "../x"):
    try:
        open(path, "w")
        print("opened", path)
    except OSError:
        pass
print(call(SYMLINKAT, b"a", -100, b"b"))
""".replace("SYMLINKAT", str(266 if X86 else 36))
    outcome = best.run(RAW + code, limits=Limits(file_bytes=100_000))
    assert outcome.stdout == f"['tmp'] [] 2 2 2 ['tmp']\n{-EPERM}\n", outcome


def test_attacks_at_once_leave_the_machine_as_it_was(sandbox, tmp_path):
    attacks = [
        RAW + "while True: posix.fork()",
        "while True: print('x' * 10000)",
        "x = []\nwhile True: x.append(bytearray(1 << 20))",
        f"open({str(tmp_path / 'no')!r}, 'w')",
    ]
    outcomes = []
    threads = [
        threading.Thread(target=lambda code=code: outcomes.append(sandbox.run(code).status))
        for code in attacks
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["error", "memory", "output", "processes"]
    assert list(Path(tmp_path).iterdir()) == [tmp_path / "secret.txt"]

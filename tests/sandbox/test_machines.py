"""Machines of all kinds: without rights, without namespaces, without anything."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

import outlay
from outlay.errors import CapabilityError
from outlay.sandbox import Limits, Sandbox, SandboxError, isolation

SOURCE = str(Path(outlay.__file__).resolve().parents[1])
X86 = platform.machine() == "x86_64"

# Become an ordinary user who may do nothing to the machine, but still reads the interpreter where
# it is installed for root alone.
UNPRIVILEGED = """
import ctypes, os
from outlay.sandbox.jail import linux
if os.geteuid() == 0:
    libc = ctypes.CDLL(None)
    DAC_OVERRIDE = 1
    linux.prctl(8, 1)  # PR_SET_KEEPCAPS
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    bit = 1 << DAC_OVERRIDE
    assert libc.capset(header, (ctypes.c_uint32 * 6)(bit, bit, bit, 0, 0, 0)) == 0
    linux.prctl(47, 2, DAC_OVERRIDE)  # PR_CAP_AMBIENT_RAISE
    linux.prctl(4, 1)
assert os.geteuid() != 0
"""
# Make a system call fail with EPERM in this process and its children, as containers do, where its
# first argument equals a number or has a bit.
FORBID = """
import ctypes, struct
from outlay.sandbox.jail import linux
EQUAL, ANY_BIT = 0x15, 0x45
def forbid(number, test, operand):
    program = b"".join(struct.pack("=HBBI", *step) for step in (
        (0x20, 0, 0, 0), (0x15, 0, 3, number),
        (0x20, 0, 0, 16), (test, 0, 1, operand),
        (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000),
    ))
    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]
    if __import__("os").geteuid() != 0:
        linux.no_new_privileges()
    loaded = Program(6, program)
    linux.prctl(linux.PR_SET_SECCOMP, 2, ctypes.addressof(loaded))
"""
UNSHARE, PRCTL = (272, 157) if X86 else (97, 167)
NO_USER_NAMESPACES = f"{FORBID}\nforbid({UNSHARE}, ANY_BIT, 0x10000000)\n"
NO_NAMESPACES = f"{FORBID}\nforbid({UNSHARE}, ANY_BIT, 0xFFFFFFFF)\n"
NO_FILTER = f"{FORBID}\nforbid({PRCTL}, EQUAL, linux.PR_SET_SECCOMP)\n"

TRY = """
import json, os
from outlay.sandbox import Limits, Sandbox
from outlay.errors import OutlayError
os.environ["OUTLAY_PLANTED"] = "secret"
found = {}
with Sandbox(namespaces=NAMESPACES) as made:
    found["kind"] = made.namespaces
    programs = {
        "ok": "print('fine')",
        "file": "open('/etc/passwd')",
        "socket": "import sys\\nsys.modules['socket'].socket()",
        "fork": "import sys\\nsys.modules['posix'].fork()",
        "kill": f"import sys\\nsys.modules['posix'].kill({os.getpid()}, 9)",
        "secret": "import sys\\nprint(dict(sys.modules['os'].environ))",
        "user": "import sys\\nprint(sys.modules['posix'].getuid() > 0)",
    }
    for name, code in programs.items():
        outcome = made.run(code)
        found[name] = [outcome.status, outcome.stdout or outcome.detail]
    found["stream"] = list(made.stream("print(1)\\nprint(2)"))
    try:
        found["folder"] = made.run("open('x', 'w')", limits=Limits(file_bytes=99)).status
    except OutlayError as error:
        found["folder"] = type(error).__name__
print(json.dumps(found))
"""


def tried(*steps, namespaces=None):
    code = "\n".join([*steps, TRY.replace("NAMESPACES", repr(namespaces))])
    done = run(code)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def run(code):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": SOURCE},
    )


def holds(found):
    """What must hold on every machine."""
    assert found["ok"] == ["ok", "fine\n"]
    for name in ("file", "socket", "kill"):
        status, text = found[name]
        assert status == "error"
        assert text.startswith("PermissionError"), found
    assert found["fork"][0] == "processes"
    assert found["secret"] == ["ok", "{}\n"]
    assert found["user"] == ["ok", "True\n"]
    assert found["stream"] == ["1", "2"]


@pytest.mark.parametrize("steps", [(), (UNPRIVILEGED,)], ids=["as-is", "unprivileged"])
def test_programs_are_kept_in_with_and_without_rights(steps):
    found = tried(*steps)
    holds(found)
    assert (found["kind"] == "user") == isolation()["user_namespaces"]
    assert found["folder"] == ("ok" if found["kind"] == "user" else "CapabilityError")


@pytest.mark.parametrize("steps", [(), (UNPRIVILEGED,)], ids=["as-is", "unprivileged"])
@pytest.mark.parametrize("forced", ["knob", "machine"])
def test_programs_are_kept_in_by_the_filter_alone(steps, forced):
    knob = {"namespaces": False} if forced == "knob" else {}
    found = tried(*steps, *([] if knob else [NO_NAMESPACES]), **knob)
    holds(found)
    assert (found["kind"], found["folder"]) == ("none", "CapabilityError")


@pytest.mark.parametrize("namespaces", [None, False])
def test_the_kernel_confirms_what_was_given_up(namespaces):
    others = set(psutil.Process().children(recursive=True))
    with Sandbox(Limits(memory_mb=64), namespaces=namespaces) as made:
        stream = made.stream("import time\nprint(1)\ntime.sleep(1000)")
        next(stream)
        (program,) = [
            process
            for process in psutil.Process().children(recursive=True)
            if process not in others and not process.children()
        ]
        folder = Path(f"/proc/{program.pid}")
        status = dict(line.split(":\t", 1) for line in read(folder / "status"))
        for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
            assert int(status[name], 16) == 0, name
        assert (status["NoNewPrivs"], status["Seccomp"], status["Threads"]) == ("1", "2", "1")
        user = 65534 if os.geteuid() == 0 else os.geteuid()
        assert status["Uid"].split() == [str(user)] * 4
        depth = len(status["NSpid"].split())
        assert (depth > len(own_pids())) == (made.namespaces != "none")
        limits = {line[:26].strip(): line[26:].split()[:2] for line in read(folder / "limits")}
        for name in ("Max file size", "Max core file size", "Max processes", "Max locked memory"):
            assert limits[name] == ["0", "0"], name
        assert limits["Max open files"] == ["3", "3"]
        assert 64 << 20 < int(limits["Max address space"][1]) < 512 << 20
        stream.close()


def read(path):
    return path.read_text(encoding="ascii").splitlines()


def own_pids():
    """This process as each process namespace around it numbers it."""
    (line,) = [line for line in read(Path("/proc/self/status")) if line.startswith("NSpid")]
    return line.split()[1:]


def test_where_user_namespaces_are_forbidden_root_makes_others():
    found = tried(NO_USER_NAMESPACES)
    holds(found)
    assert found["kind"] == ("root" if isolation()["root_namespaces"] else "none")
    assert found["folder"] == "CapabilityError"


def test_namespaces_that_are_demanded_and_forbidden_are_refused():
    done = run(f"{NO_NAMESPACES}\nfrom outlay.sandbox import Sandbox\nSandbox(namespaces=True)")
    assert "CapabilityError: namespaces=True, but this machine allows neither" in done.stderr
    assert "CAP_SYS_ADMIN" in done.stderr


@pytest.mark.parametrize("namespaces", [None, False])
def test_without_a_filter_there_is_no_sandbox(namespaces):
    code = f"{NO_FILTER}\nfrom outlay.sandbox import Sandbox\nSandbox(namespaces={namespaces})"
    done = run(code)
    assert "CapabilityError: the system-call filter (seccomp) cannot be installed" in done.stderr


def test_isolation_tells_what_is_missing():
    found = isolation()
    assert set(found) == {
        "linux",
        "seccomp",
        "rlimits",
        "user_namespaces",
        "root_namespaces",
        "root",
    }
    assert found["linux"]
    assert found["seccomp"]
    assert found["root"] == (os.geteuid() == 0)
    code = "\nfrom outlay.sandbox import isolation\nimport json\nprint(json.dumps(isolation()))"
    without = json.loads(run(NO_NAMESPACES + code).stdout)
    assert without == {**found, "user_namespaces": False, "root_namespaces": False}
    assert not json.loads(run(NO_FILTER + code).stdout)["seccomp"]


def test_other_systems_are_refused_with_what_to_do(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert set(isolation().values()) == {False}
    with pytest.raises(CapabilityError, match=r"this is darwin\): run it in a Linux"):
        Sandbox()


@pytest.mark.parametrize("executable", ["", "/nowhere/python", "/bin/true"])
def test_without_an_interpreter_to_start_there_is_no_sandbox(monkeypatch, executable):
    monkeypatch.setattr(sys, "executable", executable)
    with pytest.raises(CapabilityError, match=r"sys.executable|/nowhere/python|/bin/true"):
        Sandbox()


def test_importing_the_sandbox_is_light():
    code = (
        "import sys, outlay.sandbox\n"
        "print(sorted({'numpy', 'torch', 'ctypes', 'resource'} & set(sys.modules)))"
    )
    assert run(code).stdout == "[]\n"


def test_errors_carry_the_outcome_or_none():
    with Sandbox() as made:
        with pytest.raises(SandboxError) as caught:
            list(made.stream("1/0"))
        assert caught.value.outcome.status == "error"
    with pytest.raises(SandboxError) as caught:
        made.run("1")
    assert caught.value.outcome is None

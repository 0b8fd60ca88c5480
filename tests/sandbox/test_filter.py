"""The system-call filter, instruction by instruction, against a plain table."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlay.sandbox.jail import seccomp

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
I386 = 0x40000003


def decide(program, *, number, architecture, protection=0):
    """What the kernel's machine does with the program."""
    words = {0: number, 4: architecture, 32: protection & 0xFFFFFFFF}
    at, loaded = 0, 0
    while True:
        step = program[at]
        at += 1
        if step.code == 0x20:
            loaded = words[step.operand]
        elif step.code == 0x06:
            return step.operand
        else:
            met = {
                0x15: loaded == step.operand,
                0x35: loaded >= step.operand,
                0x45: bool(loaded & step.operand),
            }[step.code]
            at += step.true if met else step.false


def expected(machine, *, files, number, architecture, protection):
    """The same decision from the tables, without jumps."""
    column = list(ARCHITECTURES).index(machine)
    if architecture != ARCHITECTURES[machine] or number >= 0x40000000:
        return seccomp.KILL

    def listed(table):
        return number in [row[column] for row in table.values() if row[column] is not None]

    if listed(seccomp._FATAL):
        return seccomp.KILL
    if listed(seccomp._MAPPING):
        return seccomp.DENY if protection & 4 else seccomp.ALLOW
    if listed(seccomp._COMMON) or (files and listed(seccomp._FILES)):
        return seccomp.ALLOW
    return seccomp.DENY


@pytest.mark.parametrize("machine", ARCHITECTURES)
@pytest.mark.parametrize("files", [False, True])
@pytest.mark.parametrize("protection", [0, 3, 4, 7])
def test_every_call_is_decided_as_the_tables_say(machine, files, protection):
    program = seccomp.build(machine, files=files)
    for number in [*range(600), 0x3FFFFFFF, 0x40000000, 0x40000001, 0xFFFFFFFF]:
        for architecture in (*ARCHITECTURES.values(), I386):
            case = {"number": number, "architecture": architecture, "protection": protection}
            assert decide(program, **case) == expected(machine, files=files, **case), case


@given(
    machine=st.sampled_from(list(ARCHITECTURES)),
    files=st.booleans(),
    number=st.integers(0, 2**32 - 1),
    architecture=st.integers(0, 2**32 - 1) | st.sampled_from(list(ARCHITECTURES.values())),
    protection=st.integers(0, 2**64 - 1),
)
def test_any_call_of_any_architecture_is_decided_as_the_tables_say(
    machine, files, number, architecture, protection
):
    case = {"number": number, "architecture": architecture, "protection": protection}
    program = seccomp.build(machine, files=files)
    assert decide(program, **case) == expected(machine, files=files, **case)


# Numbers from the kernel's tables, on x86_64 and aarch64.
NEVER = {
    "socket": (41, 198),
    "socketpair": (53, 199),
    "connect": (42, 203),
    "bind": (49, 200),
    "sendto": (44, 206),
    "sendmsg": (46, 211),
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "prctl": (157, 167),
    "seccomp": (317, 277),
    "setuid": (105, 146),
    "capset": (126, 91),
    "prlimit64": (302, 261),
    "memfd_create": (319, 279),
    "shmget": (29, 194),
    "io_uring_setup": (425, 425),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "perf_event_open": (298, 241),
    "keyctl": (250, 219),
    "pkey_mprotect": (329, 288),
    "personality": (135, 92),
    "ioctl": (16, 29),
    "fcntl": (72, 25),
    "symlinkat": (266, 36),
    "mknodat": (259, 33),
}


@pytest.mark.parametrize("files", [False, True])
def test_calls_that_reach_other_processes_the_network_or_the_kernel_are_never_allowed(files):
    for column, machine in enumerate(ARCHITECTURES):
        program = seccomp.build(machine, files=files)
        for name, numbers in NEVER.items():
            decision = decide(program, number=numbers[column], architecture=ARCHITECTURES[machine])
            assert decision == seccomp.DENY, f"{name} on {machine}"


def test_new_processes_are_fatal():
    starts = {"clone": (56, 220), "clone3": (435, 435), "execve": (59, 221), "execveat": (322, 281)}
    for column, machine in enumerate(ARCHITECTURES):
        program = seccomp.build(machine, files=True)
        for numbers in starts.values():
            decision = decide(program, number=numbers[column], architecture=ARCHITECTURES[machine])
            assert decision == seccomp.KILL


def test_opening_a_file_is_only_allowed_with_a_folder_of_ones_own():
    for column, machine in enumerate(ARCHITECTURES):
        for files, decision in ((False, seccomp.DENY), (True, seccomp.ALLOW)):
            program = seccomp.build(machine, files=files)
            openat = (257, 56)[column]
            case = {"number": openat, "architecture": ARCHITECTURES[machine]}
            assert decide(program, **case) == decision


def test_no_jump_leaves_the_program():
    for machine in ARCHITECTURES:
        program = seccomp.build(machine, files=True)
        for at, step in enumerate(program[:-1]):
            assert at + 1 + max(step.true, step.false) < len(program)
        assert len(program) <= 4096

"""What programs may do, and how each of them ends."""

import json
import time
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlay.errors import CapabilityError, InputError
from outlay.sandbox import DEFAULT_IMPORTS, Limits, Sandbox, SandboxError

LIMITS = Limits(cpu_seconds=20, wall_seconds=60)  # of the shared sandboxes


def test_a_program_prints_and_ends_well(sandbox):
    outcome = sandbox.run("print('one')\nprint('two', end='')")
    assert (outcome.status, outcome.stdout, outcome.stderr) == ("ok", "one\ntwo", "")
    assert outcome.detail == ""
    assert 0 < outcome.seconds < 30


@pytest.mark.parametrize("module", DEFAULT_IMPORTS)
def test_every_default_module_can_be_imported_and_used(best, module):
    code = f"import {module}\nfrom {module} import *\nprint('fine')"
    if module == "__future__":
        code = "from __future__ import annotations\nprint('fine')"
    assert best.run(code).stdout == "fine\n"


def test_typical_code_runs(sandbox):
    code = """
from __future__ import annotations
import sys, json, math, re, random, heapq, itertools, functools, statistics, datetime
from collections import deque, defaultdict, namedtuple
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from typing import NamedTuple, get_type_hints

@dataclass(order=True)
class Node:
    cost: int
    name: str = field(compare=False, default="é")

class Colour(Enum):
    RED = 1

Pair = namedtuple("Pair", "a b")

@functools.lru_cache(None)
def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)

def main():
    heap = [Node(3), Node(1)]
    heapq.heapify(heap)
    random.seed(1)
    print(heapq.heappop(heap), Colour.RED.name, Pair(1, 2), fib(90))
    print(json.dumps({"x": [1, 2]}), re.findall(r"\\d+", "a1b22"), Fraction(1, 3), Decimal("0.10"))
    print(random.random(), statistics.mean([1, 2]), get_type_hints(Node)["cost"])
    print(datetime.datetime.strptime("2024-02-29", "%Y-%m-%d").strftime("%A"))
    print("é".encode("utf-16-le"), "x".encode("latin-1"), f"{math.pi:.3f}", "\\N{SNOWMAN}")

if __name__ == "__main__":
    main()
    exit()
"""
    outcome = sandbox.run(code)
    assert outcome.status == "ok", outcome
    assert outcome.stdout == (
        "Node(cost=1, name='é') RED Pair(a=1, b=2) 2880067194370816120\n"
        "{\"x\": [1, 2]} ['1', '22'] 1/3 0.10\n"
        "0.13436424411240122 1.5 <class 'int'>\n"
        "Thursday\n"
        "b'\\xe9\\x00' b'x' 3.142 ☃\n"
    )


@pytest.mark.parametrize("name", ["os", "subprocess", "ctypes", "socket", "os.path", "builtins"])
def test_a_module_outside_the_list_is_an_import_error(sandbox, name):
    outcome = sandbox.run(f"import {name}")
    assert outcome.status == "error"
    assert outcome.detail == f"ImportError: no module {name!r} here: allow_imports does not list it"
    assert (
        sandbox.run(f"try:\n    import {name}\nexcept ImportError:\n    print('no')").status == "ok"
    )


def test_standard_input_is_what_was_given(sandbox):
    code = "import sys\nprint(repr(input()), repr(sys.stdin.readline()), repr(sys.stdin.read()))"
    outcome = sandbox.run(code, "first\nsecond ü\nthird\n☃")
    assert outcome.stdout == "'first' 'second ü\\n' 'third\\n☃'\n"
    empty = sandbox.run("print(input())")
    assert (empty.status, empty.detail) == ("error", "EOFError: EOF when reading a line")


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back_as_it_went_in(best, text):
    code = "import sys\nsys.stdout.buffer.write(sys.stdin.buffer.read())"
    assert best.run(code, text).stdout == text
    assert best.run(f"import sys\nsys.stdout.write({text!a})").stdout == text


def test_output_that_is_not_utf8_is_replaced(sandbox):
    outcome = sandbox.run("import sys\nsys.stdout.buffer.write(b'a\\xff\\xfeb')")
    assert (outcome.status, outcome.stdout) == ("ok", "a��b")


def test_an_exception_has_its_traceback_with_source_lines(sandbox):
    outcome = sandbox.run("def f(x):\n    return 1 / x\n\nprint('before')\nf(0)")
    assert outcome.status == "error"
    assert outcome.stdout == "before\n"
    assert outcome.detail == "ZeroDivisionError: division by zero"
    lines = outcome.stderr.splitlines()
    assert lines[:3] == [
        "Traceback (most recent call last):",
        '  File "<program>", line 5, in <module>',
        "    f(0)",
    ]
    assert "    return 1 / x" in lines
    assert "sandbox" not in outcome.stderr


@pytest.mark.parametrize("code", ["def f(:", "x = 'open", "  x = 1", "\0", "return 1", "ß ß"])
def test_a_syntax_error_is_an_error(sandbox, code):
    outcome = sandbox.run(code)
    assert outcome.status == "error"
    assert "Error" in outcome.detail


@pytest.mark.parametrize(
    ("code", "status", "detail"),
    [
        ("import sys; sys.exit()", "ok", ""),
        ("raise SystemExit(0)", "ok", ""),
        ("exit(3)", "error", "exit code 3"),
        ("import sys; sys.exit('no luck')", "error", "no luck"),
        ("import sys; sys.exit(250)", "error", "exit code 1"),
        ("import sys; sys.modules['posix']._exit(4)", "error", "exit code 4"),
        ("import sys; sys.modules['posix']._exit(0)", "ok", ""),
        ("raise KeyboardInterrupt", "error", "KeyboardInterrupt"),
        ("", "ok", ""),
    ],
)
def test_leaving_early_is_told_by_the_exit_code(sandbox, code, status, detail):
    outcome = sandbox.run(code)
    assert (outcome.status, outcome.detail) == (status, detail)


@pytest.mark.parametrize(
    "loop",
    ["while True: pass", "10 ** 10 ** 8 % 7", "import re\nre.match('(a+)+$', 'a' * 60 + 'b')"],
)
def test_an_endless_computation_ends_at_the_cpu_limit(sandbox, loop):
    outcome = sandbox.run(f"print('start')\n{loop}", limits=Limits(cpu_seconds=0.3))
    assert (outcome.status, outcome.stdout) == ("cpu", "start\n")
    assert outcome.detail == "still running after cpu_seconds=0.3 of processor"
    assert outcome.seconds < 10


def test_sleeping_ends_at_the_wall_limit_and_costs_no_cpu_time(sandbox):
    limits = Limits(cpu_seconds=0.05, wall_seconds=0.5)
    outcome = sandbox.run("import time\nprint('z')\ntime.sleep(1000)", limits=limits)
    assert (outcome.status, outcome.stdout) == ("wall", "z\n")
    assert 0.5 <= outcome.seconds < 5


def test_a_program_cannot_outlive_the_cpu_limit_by_catching_signals(sandbox):
    code = """
import sys
signal = sys.modules["signal"]
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
while True:
    pass
"""
    assert sandbox.run(code, limits=Limits(cpu_seconds=0.2)).status == "cpu"


@pytest.mark.parametrize(
    "bomb",
    [
        "x = bytearray(10 ** 12)",
        "x = []\nwhile True: x.append(bytearray(1 << 20))",
        "x = 'a'\nwhile True: x += x",
        "x = []\nwhile True: x.append([None] * 10)",
        "x = {}\nwhile True: x[len(x)] = len(x)",
    ],
)
def test_an_allocation_bomb_ends_at_the_memory_limit(sandbox, bomb):
    outcome = sandbox.run(bomb, limits=Limits(cpu_seconds=30, wall_seconds=60, memory_mb=40))
    assert outcome.status == "memory", outcome
    assert outcome.detail == "more than memory_mb=40"


def test_memory_up_to_the_limit_can_be_used(sandbox):
    limits = Limits(memory_mb=64)
    assert sandbox.run("x = bytearray(50 << 20)\nprint(len(x))", limits=limits).status == "ok"
    assert sandbox.run("x = bytearray(70 << 20)\nprint(len(x))", limits=limits).status == "memory"


def test_running_out_of_memory_can_be_handled(sandbox):
    code = "try:\n    bytearray(10 ** 12)\nexcept MemoryError:\n    print('handled')"
    assert sandbox.run(code).stdout == "handled\n"


def test_output_beyond_the_limit_stops_the_program(sandbox):
    outcome = sandbox.run("while True: print('x' * 999)", limits=Limits(output_bytes=10_000))
    assert (outcome.status, len(outcome.stdout)) == ("output", 10_000)
    assert outcome.detail == "more than output_bytes=10000 on stdout"


def test_output_at_the_limit_is_fine(sandbox):
    limits = Limits(output_bytes=10_000)
    assert sandbox.run("print('x' * 9999)", limits=limits).status == "ok"
    assert sandbox.run("print('x' * 10000)", limits=limits).status == "output"
    assert sandbox.run("pass", limits=Limits(output_bytes=0)).status == "ok"
    assert sandbox.run("print()", limits=Limits(output_bytes=0)).status == "output"


def test_standard_error_keeps_its_ends_and_stops_the_program_at_the_limit(sandbox):
    code = "import sys\nprint('START', file=sys.stderr)\nprint('e' * 300_000, file=sys.stderr)\n1/0"
    outcome = sandbox.run(code)
    assert outcome.status == "error"
    assert outcome.stderr.startswith("START\n")
    assert outcome.stderr.endswith("ZeroDivisionError: division by zero\n")
    assert "bytes left out]" in outcome.stderr
    assert len(outcome.stderr) < 66_000
    flood = sandbox.run("import sys\nwhile True: print('e' * 999, file=sys.stderr)")
    assert (flood.status, flood.stdout) == ("output", "")
    assert flood.detail == "more than output_bytes=1000000 on stderr"
    assert len(flood.stderr) < 66_000


def test_recursion_without_end_is_an_error_and_with_a_raised_limit_is_contained(sandbox):
    recursion = "def f(n): return f(n + 1) + 1\nf(0)"
    outcome = sandbox.run(recursion)
    assert outcome.status == "error"
    assert outcome.detail.startswith("RecursionError: maximum recursion depth exceeded")
    limits = Limits(cpu_seconds=20, wall_seconds=60, memory_mb=32)
    raised = sandbox.run("import sys\nsys.setrecursionlimit(10**9)\n" + recursion, limits=limits)
    assert raised.status in ("memory", "error", "killed")
    nested = "x = []\nfor i in range(10**5): x = [x]\n"
    crash = sandbox.run(f"import sys\nsys.setrecursionlimit(10**9)\n{nested}repr(x)")
    assert crash.status == "killed"
    assert "signal 11" in crash.detail
    assert sandbox.run("print(1)").stdout == "1\n"


def test_nothing_that_a_program_changes_is_seen_by_the_next(sandbox):
    code = """
import sys, math, json, random
print(getattr(math, "left", None), hasattr(sys, "left"), sys.getrecursionlimit(), "x" in globals())
math.left = sys.left = x = 1
json.dumps = None
sys.modules["re"] = None
sys.setrecursionlimit(77)
sys.stdout.reconfigure(encoding="latin-1")
"""
    for _ in range(3):
        assert sandbox.run(code).stdout == "None False 1000 False\n"


def test_random_numbers_differ_between_programs_and_set_order_does_not(sandbox):
    drawn = {sandbox.run("import random\nprint(random.random())").stdout for _ in range(4)}
    assert len(drawn) == 4
    orders = {sandbox.run("print({'a', 'b', 'c', 'd', 'e', 'f'})").stdout for _ in range(4)}
    with Sandbox() as other:
        orders.add(other.run("print({'a', 'b', 'c', 'd', 'e', 'f'})").stdout)
    assert len(orders) == 1


def test_sys_tells_nothing_about_the_machine(sandbox):
    code = "import sys\nprint(sys.argv, sys.path, [sys.executable])"
    assert sandbox.run(code).stdout == "['<program>'] [] ['']\n"


def test_a_program_may_read_and_write_in_a_folder_of_its_own(best):
    code = """
with open("a.txt", "w") as file:
    file.write("ü" * 10)
with open("a.txt", "a+b") as file:
    file.seek(0)
    print(file.read().decode())
"""
    limits = Limits(file_bytes=10_000)
    for _ in range(2):  # the second finds an empty folder again
        assert best.run(code, limits=limits).stdout == "ü" * 10 + "\n"
    big = best.run("with open('b', 'w') as f: f.write('x' * 10_001)", limits=limits)
    assert big.detail == "OSError: [Errno 27] File too large"
    many = best.run(
        "for i in range(100):\n    with open(f'{i}', 'w') as f: f.write('x' * 4096)", limits=limits
    )
    assert many.detail == "OSError: [Errno 28] No space left on device"


def test_a_folder_needs_namespaces():
    with Sandbox(namespaces=False) as plain:
        with pytest.raises(CapabilityError, match="file_bytes needs unprivileged user namespaces"):
            plain.run("print(1)", limits=Limits(file_bytes=1))
        with pytest.raises(CapabilityError, match="set file_bytes=0"):
            plain.stream("print(1)", limits=Limits(file_bytes=1))
        assert plain.run("print(1)").status == "ok"
    with pytest.raises(CapabilityError, match="set file_bytes=0"):
        Sandbox(Limits(file_bytes=1), namespaces=False)


def test_other_modules_can_be_allowed_with_their_submodules():
    names = ("os.path", "xml.etree.ElementTree", "numpy")
    with Sandbox(Limits(memory_mb=512), allow_imports=names) as made:
        code = """
import os.path
from xml.etree import ElementTree
import numpy as np
print(os.path.join("a", "b"), ElementTree.fromstring("<a>1</a>").text)
print(np.arange(6).reshape(2, 3) @ np.ones(3), np.linalg.det(np.eye(2)))
"""
        outcome = made.run(code)
        assert outcome.stdout == "a/b 1\n[ 3. 12.] 1.0\n", outcome
        assert made.run("import math").detail.startswith("ImportError: no module 'math' here")
        assert made.run("import xml.sax").detail.startswith("ImportError: no module 'xml.sax'")
        assert made.run("import os\nos.listdir('/')").detail.startswith("PermissionError")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("no_such_module",), "'no_such_module' cannot be imported"),
        (("os; print",), "must hold names of modules, got 'os; print'"),
        (("",), "must hold names of modules, got ''"),
        ((1,), "must hold names of modules, got 1"),
        ("math", "must be a tuple of names, got the string 'math'"),
        (("antigravity_x.y",), "cannot be imported"),
    ],
)
def test_a_module_that_cannot_be_allowed_is_named(names, message):
    with pytest.raises(InputError, match=message):
        Sandbox(allow_imports=names)


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("cpu_seconds", 0),
        ("cpu_seconds", float("nan")),
        ("wall_seconds", -1),
        ("wall_seconds", float("inf")),
        ("wall_seconds", "1"),
        ("memory_mb", 0),
        ("memory_mb", 1.5),
        ("memory_mb", True),
        ("output_bytes", -1),
        ("file_bytes", 10**12),
        ("code_bytes", 0),
    ],
)
def test_a_limit_out_of_range_is_named(knob, value):
    with pytest.raises(InputError, match=knob):
        Limits(**{knob: value})


@pytest.mark.parametrize("workers", [0, -1, 1000, 1.5, True])
def test_an_absurd_number_of_workers_is_refused(workers):
    with pytest.raises(InputError, match="workers"):
        Sandbox(workers=workers)


def test_bad_arguments_are_named(best):
    with pytest.raises(InputError, match="more than code_bytes allows"):
        best.run("#" * 100_001)
    with pytest.raises(InputError, match="code must be a string, got bytes"):
        best.run(b"1")
    with pytest.raises(InputError, match="code cannot be encoded"):
        best.stream("'\ud800'")
    with pytest.raises(InputError, match="stdin cannot be encoded"):
        best.run("1", "\ud800")
    with pytest.raises(InputError, match="stdin has 67108865 bytes"):
        best.run("1", "x" * ((1 << 26) + 1))
    with pytest.raises(InputError, match="limits must be a Limits, got dict"):
        best.run("1", limits={})
    with pytest.raises(InputError, match="namespaces must be"):
        Sandbox(namespaces="yes")


def test_long_input_does_not_block(sandbox):
    text = "0123456789" * 1_000_000
    outcome = sandbox.run("import sys\nprint(len(sys.stdin.read()))", text)
    assert outcome.stdout == "10000000\n"
    assert sandbox.run("pass", text).status == "ok"


def test_lines_come_while_the_program_runs(sandbox):
    stream = sandbox.stream("import time\nprint('early')\ntime.sleep(1000)")
    start = time.monotonic()
    assert next(stream) == "early"  # long before the wall limit lets the program end
    assert time.monotonic() - start < LIMITS.wall_seconds / 2
    stream.close()


def test_a_stream_is_split_at_line_feeds_only(sandbox):
    outcome = list(sandbox.stream(r"print('a\rb\x0bc\u2028d\n\ne', end='')"))
    assert outcome == ["a\rb\x0bc\u2028d", "", "e"]
    assert list(sandbox.stream("pass")) == []


@given(lines=st.lists(st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]))))
def test_a_stream_gives_the_lines_that_run_gives(best, lines):
    code = f"import sys\nsys.stdout.write({chr(10).join(lines)!a})"
    text = best.run(code).stdout
    assert list(best.stream(code)) == (text.removesuffix("\n").split("\n") if text else [])


def test_a_program_that_fails_ends_its_stream_with_its_outcome(sandbox):
    lines = []
    with pytest.raises(SandboxError, match="status 'error': ZeroDivisionError") as caught:
        lines.extend(sandbox.stream("print('a')\nprint('cut', end='')\n1/0"))
    assert lines == ["a"]  # the line that was cut off is not given as a line
    assert caught.value.outcome.status == "error"
    assert caught.value.outcome.stdout == ""
    assert "ZeroDivisionError" in caught.value.outcome.stderr


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("while True: print('x' * 100)", "output"),
        ("while True: print('x' * 100, end='')", "output"),
        ("while True: pass", "cpu"),
        ("import time\ntime.sleep(99)", "wall"),
        ("import sys\nsys.modules['posix'].fork()", "processes"),
    ],
)
def test_a_stream_keeps_all_limits(sandbox, code, status):
    limits = {
        "output": Limits(output_bytes=2_000_000),
        "cpu": Limits(cpu_seconds=0.3, wall_seconds=30),
        "wall": Limits(wall_seconds=0.5),
        "processes": Limits(),
    }[status]
    with pytest.raises(SandboxError) as caught:
        deque(sandbox.stream(code, limits=limits), maxlen=1)
    assert caught.value.outcome.status == status


def test_outcomes_can_be_written_as_json(sandbox):
    outcome = sandbox.run("print('ü')")
    assert json.loads(json.dumps(vars(outcome)))["stdout"] == "ü\n"

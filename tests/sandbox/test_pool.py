"""The pool: threads, closing, crashes, and streams that are let go."""

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from outlay.sandbox import Limits, Sandbox, SandboxError, execution, worker

FOREVER = "import time\nprint('on', flush=True)\nwhile True: time.sleep(1)"


def processes():
    return psutil.Process().children(recursive=True)


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def others():
    """Processes of sandboxes that other tests share."""
    return set(processes())


def new(others):
    return [process for process in processes() if process not in others]


def test_a_worker_is_two_processes_and_a_program_is_one_more(others):
    with Sandbox(workers=2) as made:
        assert len(new(others)) == 4
        stream = made.stream(FOREVER)
        assert next(stream) == "on"
        assert len(new(others)) == 5
        stream.close()
        assert len(new(others)) == 4
    assert new(others) == []


def test_nothing_is_left_after_close_even_of_a_running_program(others):
    made = Sandbox()
    stream = made.stream(FOREVER)
    next(stream)
    made.close()
    assert new(others) == []
    with pytest.raises(SandboxError, match="the sandbox is closed"):
        next(stream)
    with pytest.raises(SandboxError, match="the sandbox is closed"):
        made.run("1")
    made.close()


def test_close_ends_runs_and_waits_of_other_threads(others):
    made = Sandbox()
    failures = []

    def run():
        try:
            made.run(FOREVER, limits=Limits(wall_seconds=100))
        except SandboxError as error:
            failures.append(str(error))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(new(others)) == 3)
    made.close()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert failures == ["the sandbox is closed; make a new one"] * 3
    assert new(others) == []


def test_a_sandbox_that_is_forgotten_leaves_nothing(others):
    made = Sandbox()
    assert made.run("print(1)").stdout == "1\n"
    del made
    gc.collect()
    assert new(others) == []


def test_nothing_is_left_when_the_owner_is_killed(others):
    code = (
        "from outlay.sandbox import Sandbox\nmade = Sandbox()\n"
        f"for line in made.stream({FOREVER!r}):\n    print(line, flush=True)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as owner:
        owner.stdout.readline()
        own = psutil.Process(owner.pid).children(recursive=True)
        assert len(own) == 3
        owner.kill()
        _, left = psutil.wait_procs(own, timeout=20)
        assert [p for p in left if p.status() != psutil.STATUS_ZOMBIE] == []


def test_nothing_is_left_when_the_owner_ends_without_closing():
    code = (
        "import psutil\nfrom outlay.sandbox import Sandbox\nmade = Sandbox()\n"
        "print([p.pid for p in psutil.Process().children(recursive=True)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    pids = json.loads(done.stdout)
    assert len(pids) == 2
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_closing_a_stream_early_kills_its_program_and_frees_the_worker(sandbox):
    for _ in range(3):
        stream = sandbox.stream("i = 0\nwhile True:\n    print(i)\n    i += 1")
        assert [next(stream) for _ in range(1000)] == [str(i) for i in range(1000)]
        stream.close()
    assert sandbox.run("print('next')").stdout == "next\n"


def test_a_stream_that_was_never_started_holds_nothing(sandbox):
    streams = [sandbox.stream("print(1)") for _ in range(5)]
    assert sandbox.run("print(2)").stdout == "2\n"
    assert list(streams[0]) == ["1"]


def test_a_stream_that_waits_for_its_reader_ends_at_the_wall_limit(sandbox):
    limits = Limits(wall_seconds=0.5, cpu_seconds=5, output_bytes=1 << 30)
    stream = sandbox.stream("while True: print('x' * 99)", limits=limits)
    next(stream)
    time.sleep(0.8)
    with pytest.raises(SandboxError, match="status 'wall'"):
        for _ in stream:
            pass


def test_a_run_inside_a_stream_of_the_only_worker_is_refused_and_not_a_deadlock():
    with Sandbox() as made:
        stream = made.stream("for i in range(3): print(i)")
        next(stream)
        with pytest.raises(SandboxError, match="hold all 1 workers"):
            made.run("1")
        stream.close()
        assert made.run("1").status == "ok"


def test_a_stream_of_a_million_lines_takes_constant_memory(best):
    limits = Limits(cpu_seconds=60, wall_seconds=200, output_bytes=1 << 27)
    code = "for i in range(1 << 20): print(i, 'x' * 60)"
    process = psutil.Process()
    stream = best.stream(code, limits=limits)
    assert next(stream) == "0 " + "x" * 60
    before, most, count = process.memory_info().rss, 0, 1
    for line in stream:
        if count % 50_000 == 0:
            most = max(most, process.memory_info().rss - before)
            assert line == f"{count} " + "x" * 60
        count += 1
    assert count == 1 << 20
    assert most < 16 << 20  # of 70 MB


def test_many_threads_share_several_workers():
    with Sandbox(workers=3) as made, ThreadPoolExecutor(8) as threads:
        codes = [f"import time\ntime.sleep(0.02)\nprint({i} ** 2)" for i in range(60)]
        outcomes = list(threads.map(made.run, codes))
        assert [outcome.stdout for outcome in outcomes] == [f"{i * i}\n" for i in range(60)]
        assert len(made._workers) == 3


def test_workers_run_at_the_same_time():
    with Sandbox(workers=4) as made, ThreadPoolExecutor(4) as threads:
        start = time.monotonic()
        outcomes = list(threads.map(made.run, ["import time\ntime.sleep(1)"] * 4))
        assert time.monotonic() - start < 3
        assert [outcome.status for outcome in outcomes] == ["ok"] * 4


def kill(others, which):
    """Kill processes of a sandbox from outside."""
    for process in new(others)[which]:
        process.kill()


def kill_during_a_run(others, which):
    """Kill processes of a sandbox of one worker as soon as its program runs."""

    def wait_and_kill():
        wait_until(lambda: len(new(others)) == 3)
        kill(others, which)

    threading.Thread(target=wait_and_kill).start()


@pytest.mark.parametrize("which", [slice(0, 1), slice(1, 2), slice(0, 2)])
def test_a_zygote_that_was_killed_is_replaced(others, which):
    with Sandbox() as made:
        assert made.run("print(1)").stdout == "1\n"
        kill(others, which)
        assert made.run("print(2)").stdout == "2\n"
    assert new(others) == []


def test_a_run_whose_zygote_is_killed_is_run_again(others):
    with Sandbox() as made:
        kill_during_a_run(others, slice(1, 2))
        outcome = made.run("import time\ntime.sleep(1)\nprint('done')")
        assert (outcome.status, outcome.stdout) == ("ok", "done\n")


def test_a_stream_whose_zygote_is_killed_says_so_and_the_next_program_runs(others):
    with Sandbox() as made:
        stream = made.stream(FOREVER)
        next(stream)
        kill(others, slice(1, 2))
        with pytest.raises(SandboxError, match="the sandbox's process was killed"):
            next(stream)
        assert made.run("print(1)").stdout == "1\n"


def test_a_program_killed_from_outside_is_an_outcome(others):
    with Sandbox() as made:
        kill_during_a_run(others, slice(2, 3))
        outcome = made.run(FOREVER)
        assert outcome.status == "killed"
        assert outcome.detail == "by signal 9 (Killed)"


def test_a_zygote_that_hangs_is_replaced(others, monkeypatch):
    monkeypatch.setattr(execution, "_GRACE_SECONDS", 0.5)
    monkeypatch.setattr(worker, "_END_SECONDS", 0.3)
    with Sandbox(Limits(wall_seconds=0.5)) as made:
        for process in new(others):
            process.suspend()
        assert made.run("print(1)").stdout == "1\n"
        assert len(new(others)) == 2
    assert new(others) == []


class Interrupted(Exception):
    pass


def test_an_interrupted_run_leaves_a_sandbox_that_works(others):
    def interrupt(*_):
        raise Interrupted

    with Sandbox() as made:
        before = signal.signal(signal.SIGALRM, interrupt)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            with pytest.raises(Interrupted):
                made.run(FOREVER)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert made.run("print(1)").stdout == "1\n"
        assert len(new(others)) == 2


def test_a_forked_child_cannot_use_the_sandbox_and_does_not_harm_it(others):
    with Sandbox() as made:
        before = new(others)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                made.run("1")
            except SandboxError as error:
                code = 0 if "belongs to another process" in str(error) else 2
            finally:
                made.close()
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        assert made.run("print(1)").stdout == "1\n"
        assert new(others) == before


def test_descriptors_do_not_pile_up():
    with Sandbox() as made:
        made.run("1")
        before = psutil.Process().num_fds()
        for _ in range(30):
            made.run("print(1)")
            stream = made.stream("while True: print(1)")
            next(stream)
            stream.close()
        assert psutil.Process().num_fds() == before

"""One worker: a zygote process and the socket that talks to it."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from outlay.errors import CapabilityError, InputError
from outlay.sandbox.base import SandboxError

_START_SECONDS = 60.0  # importing the allowed modules on a busy machine
_END_SECONDS = 2.0
_MESSAGE_BYTES = 1 << 16
_FLAGS = ("-s", "-S", "-P", "-B", "-X", "utf8")  # the standard library alone
_LAUNCH = (
    "import sys; sys.path.insert(0, sys.argv[1]); from jail.zygote import main;"
    " del sys.path[0]; main(int(sys.argv[2]))"
)
# All that the zygote knows of the environment. Fixed, so that sets of strings have one order and
# clocks one zone in every worker; libraries that start threads when imported are told not to.
_ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "TZ": "UTC0",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


class WorkerDiedError(Exception):
    """The zygote is gone."""


class Worker:
    """A zygote, started but not yet ready.

    Args:
        modules: what programs may import.
        namespaces: True demands them, False goes without, None takes what there is.

    Raises:
        CapabilityError: if no process can be started.
    """

    def __init__(self, modules: Sequence[str], namespaces: bool | None) -> None:
        foreign = any(name.split(".")[0] not in sys.stdlib_module_names for name in modules)
        self._process, self._control = _launch(
            {
                "modules": list(modules),
                "path": [str(Path(entry).resolve()) for entry in sys.path] if foreign else [],
                "namespaces": namespaces,
            }
        )
        self.kind = ""
        self._runs = 0

    def wait_ready(self) -> None:
        """Wait until it is isolated.

        Raises:
            CapabilityError: if it cannot isolate.
            InputError: if a module cannot be imported.
        """
        try:
            answer = _answer(self._control)
        except CapabilityError:
            self.close()
            raise
        if "refused" in answer:
            self.close()
            error = InputError if answer["refused"] == "input" else CapabilityError
            raise error(answer["message"])
        self.kind = answer["ready"]

    def alive(self) -> bool:
        """Whether it still waits for programs; ask only while it runs none."""
        poll = select.poll()
        poll.register(self._control)
        ended = any(event & select.POLLHUP for _, event in poll.poll(0))
        return not ended and self._process.poll() is None

    def descriptor(self) -> int:
        """Of the socket, to poll for the result."""
        return self._control.fileno()

    def start(self, limits: dict[str, Any], descriptors: Sequence[int], *, streaming: bool) -> None:
        """Run a program whose code and three streams are these descriptors.

        Raises:
            WorkerDiedError: if the zygote is gone.
        """
        self._runs += 1
        message = json.dumps({"run": self._runs, "limits": limits, "streaming": streaming}).encode()
        try:
            socket.send_fds(self._control, [message], descriptors)
        except OSError as error:
            raise WorkerDiedError from error

    def stop(self) -> None:
        """Kill the program; its result still comes."""
        with contextlib.suppress(OSError):  # the result will tell that the worker died
            self._control.send(json.dumps({"stop": self._runs}).encode())

    def result(self) -> dict[str, Any]:
        """How the program ended; call it when the socket is readable.

        Raises:
            WorkerDiedError: if the zygote is gone.
            SandboxError: if it could not start the program.
        """
        try:
            message = self._control.recv(_MESSAGE_BYTES)
        except OSError as error:
            raise WorkerDiedError from error
        if not message:
            raise WorkerDiedError
        answer: dict[str, Any] = json.loads(message)
        if "failed" in answer:
            raise SandboxError(f"the machine cannot start another process: {answer['failed']}")
        return answer

    def end(self) -> None:
        """End the zygote with what it runs, and wait for it. Safe while another thread reads."""
        with contextlib.suppress(OSError):  # already closed or cut off
            self._control.shutdown(socket.SHUT_RDWR)
        for act in (lambda: None, self._process.terminate, self._process.kill):
            act()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_SECONDS)
                return

    def close(self) -> None:
        """End the zygote and close the socket. Can be called again."""
        self.end()
        self._control.close()


def probe() -> dict[str, bool]:
    """What this machine offers, asked of a fresh process.

    Raises:
        CapabilityError: if no process can be started.
    """
    process, control = _launch({"probe": True})
    with control:
        answer = _answer(control)
    process.wait()
    return answer


def _launch(configuration: dict[str, Any]) -> tuple[subprocess.Popen[bytes], socket.socket]:
    if sys.platform != "linux":
        raise CapabilityError(
            f"the sandbox needs Linux (this is {sys.platform}): run it in a Linux container or VM"
        )
    if not sys.executable:
        raise CapabilityError("the sandbox needs sys.executable: run under a normal interpreter")
    own, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    folder = str(Path(__file__).resolve().parent)
    with other:
        try:
            process = subprocess.Popen(
                [sys.executable, *_FLAGS, "-c", _LAUNCH, folder, str(other.fileno())],
                env=_ENVIRONMENT,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[other.fileno()],
                start_new_session=True,
            )
        except OSError as error:
            own.close()
            raise CapabilityError(f"{sys.executable} cannot be started: {error}") from error
    with contextlib.suppress(OSError):  # it has already ended, as will be seen
        own.send(json.dumps(configuration).encode())
    return process, own


def _answer(control: socket.socket) -> dict[str, Any]:
    poll = select.poll()
    poll.register(control, select.POLLIN)
    message = b""
    if poll.poll(_START_SECONDS * 1000):
        with contextlib.suppress(OSError):  # it ended without reading
            message = control.recv(_MESSAGE_BYTES)
    if not message:
        raise CapabilityError(
            f"the sandbox's process did not start: check that {sys.executable} runs with an empty"
            " environment, and that the machine is not short of memory"
        )
    answer: dict[str, Any] = json.loads(message)
    return answer

"""A gateway as users run it: `outlay serve` with worker processes, and an upstream of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

HERE = Path(__file__).parent


@dataclass
class Processes:
    """A running gateway and its upstream."""

    url: str
    token: str
    database: str
    log: Path
    process: subprocess.Popen[bytes]

    def workers(self) -> list[psutil.Process]:
        """The worker processes (one that serves has a thread for its store)."""
        children = psutil.Process(self.process.pid).children()
        return [c for c in children if "spawn_main" in " ".join(_words(c))]

    def kill(self, worker: psutil.Process) -> None:
        """Kill without a chance to tidy up."""
        os.kill(worker.pid, signal.SIGKILL)

    def served(self) -> list[dict[str, Any]]:
        """What the upstream served, from its own log."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def admin(self, method: str, path: str, body: Any = None) -> Any:
        """A call of the admin API."""
        headers = {"authorization": f"Bearer {self.token}"}
        answer = httpx.request(
            method, f"{self.url}/admin/v1/{path}", json=body, headers=headers, timeout=60
        )
        assert answer.status_code < 300, answer.text
        return answer.json()


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def gateway(
    folder: Path,
    database: str,
    *,
    workers: int,
    lease: float = 3.0,
    models: str = "",
    tokenizer: str = "",
) -> Iterator[Processes]:
    """`outlay serve` with `workers` processes in front of a recording upstream."""
    port, up = free_port(), free_port()
    log = folder / "served.jsonl"
    log.touch()
    names = ("plain", "slow", "drip")
    config = folder / "gateway.toml"
    config.write_text(
        f'[server]\nport = {port}\nworkers = {workers}\nlog_level = "error"\ngrace = 5\n'
        f"[store]\nurl = {json.dumps(database)}\nlease = {lease}\n"
        f'[upstreams.recorder]\nurl = "http://127.0.0.1:{up}/v1"\nretries = 0\n'
        + "".join(
            f'[models.{name}]\nupstream = "recorder"\nprice = {{ input = 1, output = 2 }}\n'
            + (f"tokenizer = {json.dumps(tokenizer)}\n" if tokenizer else "")
            for name in names
        )
        + models
    )
    upstream = subprocess.Popen(
        [sys.executable, str(HERE / "recording_upstream.py"), str(up), str(log)]
    )
    output = folder / "gateway.log"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "outlay", "serve", str(config)],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        url = f"http://127.0.0.1:{port}"
        try:
            _wait(url, process, output)
            found = re.search(r"olk_\w{16}_[\w-]{43}", output.read_text())
            assert found is not None
            yield Processes(url, found[0], database, log, process)
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
                process.kill()
            upstream.terminate()
            upstream.wait(10)


def _wait(url: str, process: subprocess.Popen[bytes], output: Path) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        assert process.poll() is None, output.read_text()
        try:
            if httpx.get(f"{url}/health/ready", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.2)
    raise AssertionError(f"the gateway did not start: {output.read_text()}")

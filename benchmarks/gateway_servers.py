"""Servers of the gateway's benchmarks, each a process on loopback: upstream, ours, peers."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

HERE = Path(__file__).parent
_PLACES = [Path(f"/usr/lib/postgresql/{version}/bin") for version in range(18, 13, -1)]


@dataclass(frozen=True)
class Side:
    """A server that answers chat requests with `token`; `root` is an admin's key."""

    url: str
    token: str
    process: subprocess.Popen[bytes] | None = None
    root: str = ""


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def running(
    command: Sequence[str],
    probe: str,
    *,
    output: Path,
    more: Mapping[str, str] | None = None,
    status: int = 200,
) -> Iterator[subprocess.Popen[bytes]]:
    """A process, from when `probe` answers with `status` until the block ends."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(more or {})}
    with output.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=output.parent
        )
    try:
        until = time.monotonic() + 240
        while True:
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"{command[0]} did not start: {output.read_text()[-2000:]}")
            try:
                if httpx.get(probe, timeout=5, trust_env=False).status_code == status:
                    break
            except httpx.HTTPError:
                time.sleep(0.3)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def upstream(folder: Path, wait: float) -> Iterator[str]:
    """The instant upstream, or one that waits; its base URL."""
    port = free_port()
    command = [sys.executable, str(HERE / "gateway_upstream.py"), str(port), str(wait)]
    url = f"http://127.0.0.1:{port}"
    with running(command, url, output=folder / f"upstream-{port}.log"):
        yield url


@contextmanager
def outlay(
    folder: Path,
    upstreams: Mapping[str, str],
    *,
    name: str,
    database: str = "",
    durability: str = "machine",
    knobs: str = "",
) -> Iterator[Side]:
    """`outlay serve` with one worker; a key under a daily token and a monthly money budget.

    Args:
        folder: for its files.
        upstreams: base URL by model name.
        name: of its files.
        database: URL; empty for SQLite in `folder`.
        durability: see `outlay.gateway.store.engine`.
        knobs: further TOML of every upstream.
    """
    port, config = free_port(), folder / f"{name}.toml"
    url = database or f"sqlite:///{folder / name}.db"
    text = (
        f'[server]\nport = {port}\nlog_level = "warning"\n'
        f'[store]\nurl = {json.dumps(url)}\ndurability = "{durability}"\n'
    )
    for model, base in upstreams.items():
        text += (
            f'[upstreams.{model}]\nurl = "{base}/v1"\nkeepalive = 60\nretries = 0\n{knobs}'
            f'[models.{model}]\nupstream = "{model}"\nprice = {{ input = 1, output = 2 }}\n'
        )
    config.write_text(text, encoding="utf-8")
    output = folder / f"{name}.log"
    command = [sys.executable, "-m", "outlay", "serve", str(config)]
    base = f"http://127.0.0.1:{port}"
    with running(command, f"{base}/health/ready", output=output) as process:
        found = re.search(r"olk_\w{16}_[\w-]{43}", output.read_text())
        assert found is not None, output.read_text()
        made = admin(base, found[0], "POST", "keys", {"name": "bench"})
        for form in (
            {"name": "day", "window": "day", "key_id": made["id"], "amount": 10**12},
            {"name": "month", "unit": "nanousd", "amount": 10**15},
        ):
            admin(base, found[0], "POST", "budgets", form)
        yield Side(base, made["token"], process, found[0])


def admin(url: str, token: str, method: str, path: str, body: Any = None) -> Any:
    """A call of the admin API."""
    headers = {"authorization": f"Bearer {token}"}
    answer = httpx.request(
        method, f"{url}/admin/v1/{path}", json=body, headers=headers, timeout=60, trust_env=False
    )
    answer.raise_for_status()
    return answer.json()


@contextmanager
def litellm(folder: Path, upstreams: Mapping[str, str], python: Path) -> Iterator[Side]:
    """LiteLLM's proxy with one worker, without a database; quiet, as ours is."""
    port, token = free_port(), "sk-bench"
    entries = [
        {
            "model_name": model,
            "litellm_params": {
                "model": f"openai/{model}",
                "api_base": f"{base}/v1",
                "api_key": "x",
            },
        }
        for model, base in upstreams.items()
    ]
    config = folder / "litellm.yaml"  # JSON is YAML
    settings = {"model_list": entries, "general_settings": {"master_key": token}}
    config.write_text(json.dumps({**settings, "litellm_settings": {"num_retries": 0}}))
    command = [str(python.parent / "litellm"), "--config", str(config)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    url = f"http://127.0.0.1:{port}"
    quiet = {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    with running(
        command, f"{url}/health/liveliness", output=folder / "litellm.log", more=quiet
    ) as process:
        yield Side(url, token, process)


@contextmanager
def postgres(folder: Path) -> Iterator[str | None]:
    """URL of a PostgreSQL server of our own with its default durability; None without one."""
    found = next((place for place in _PLACES if (place / "initdb").exists()), None)
    initdb = str(found / "initdb") if found else shutil.which("initdb")
    server = str(found / "postgres") if found else shutil.which("postgres")
    if initdb is None or server is None:
        print("no PostgreSQL here; its rows are left out")
        yield None
        return
    home = Path(tempfile.mkdtemp(prefix="outlay-pg-"))
    as_user: list[str] = []
    if os.geteuid() == 0:  # the server refuses root
        shutil.chown(home, "postgres", "postgres")
        as_user = ["runuser", "-u", "postgres", "--"]
    make = [*as_user, initdb, "-D", str(home / "data"), "-U", "outlay", "-A", "trust"]
    subprocess.run([*make, "-E", "UTF8"], check=True, capture_output=True, cwd=home)
    port = free_port()
    process = subprocess.Popen(
        [*as_user, server, "-D", str(home / "data"), "-p", str(port), "-k", str(home)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=home,
    )
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        time.sleep(1)
        yield f"postgresql://outlay@127.0.0.1:{port}/postgres"
    finally:
        process.terminate()
        process.wait(30)
        shutil.rmtree(home, ignore_errors=True)

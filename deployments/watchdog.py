"""Ends a service whose parent is gone, however it went: `python -m deployments.watchdog MARK`.

Runs in a session of its own and holds the reading end of a pipe from the parent. The end of that pipe is
the parent's end, SIGKILL included; then every process that carries the mark is ended, flow runs and PostgreSQL too.
"""

import signal
import sys

from deployments import instance


def main() -> None:
    """Wait for the end of standard input, then end what is left."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    ended = instance.end_all(sys.argv[1])
    if ended:
        print(f"The service's parent is gone: ended {ended} processes.", flush=True)


if __name__ == "__main__":
    main()

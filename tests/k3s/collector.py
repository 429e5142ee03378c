"""Where the scenarios' agents say which calls they make: outside the cluster, so that no death in it loses a line."""

import socketserver
import threading
from pathlib import Path
from typing import Any

from tests.k3s.machine import OUTSIDE

PORT = 9009


class _Line(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        # Without its end it was cut: nobody has been told that it counts.
        if (line := self.rfile.readline()).endswith(b"\n"):
            server: Any = self.server
            with server.turn, server.path.open("ab") as file:
                file.write(line)
            self.wfile.write(b".")


class Collector(socketserver.ThreadingTCPServer):
    """Takes a line from each connection, appends it to ``path`` and answers."""

    daemon_threads = allow_reuse_address = True
    request_queue_size = 100

    def __init__(self, path: Path) -> None:
        super().__init__((OUTSIDE, PORT), _Line)
        self.path, self.turn = path, threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        """host:port, as pods reach it."""
        return f"{OUTSIDE}:{PORT}"

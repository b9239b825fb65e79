"""A server of the demos, on the shipped tiny models."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class Server:
    """A running `python -m demos`."""

    def __init__(self, temporary: Path):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/"
        self.temporary = temporary
        environment = os.environ | {
            "TMPDIR": str(temporary),
            "GRADIO_ANALYTICS_ENABLED": "False",
            "OMP_NUM_THREADS": "2",
        }
        self.log = temporary / "server.log"
        with self.log.open("w") as log:
            command = [sys.executable, "-m", "demos", "--model", "aurora-tiny", "--port", str(self.port)]
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def wait(self, seconds: float = 180) -> None:
        """Until it answers."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server stopped:\n{self.log.read_text()}")
            try:
                urllib.request.urlopen(self.url, timeout=5).close()
                return
            except OSError:
                time.sleep(0.3)
        raise RuntimeError(f"the server did not answer in {seconds} s:\n{self.log.read_text()}")

    def resident_mb(self) -> float:
        """Memory of the process."""
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines())
        return int(fields["VmRSS"].split()[0]) / 1024

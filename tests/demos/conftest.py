"""One server for all tests of the page."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from demo_server import Server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("gradio")
    temporary = tmp_path_factory.mktemp("demos")
    running = Server(temporary)
    try:
        running.wait()
        yield running
    finally:
        running.process.terminate()
        running.process.wait(30)

"""The engine of `train.prepare` beyond one machine: shards as tasks of Ray Data."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from perception.datasets.labelling.jobs import Part


class _Worker:
    """Makes shards in a process of its own, which loads the teachers once."""

    def __init__(self, make: Callable[[Part], dict[str, Any]]):
        self.make = make

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            record: dict[str, Any] = self.make(Part(int(row["number"]), tuple(json.loads(row["names"]))))
        except ValueError as error:  # Ray would wrap it, and print the whole of its own stack
            record = {"error": str(error)}
        return {"record": json.dumps(record)}


def ray_engine(
    parts: Sequence[Part], make: Callable[[Part], dict[str, Any]], workers: int = 2
) -> Iterator[dict[str, Any]]:
    """Runs the shards on the cluster of RAY_ADDRESS, or on a Ray of this machine that ends with it.

    Raises:
        ValueError: where Ray is not installed, or as `make` does.
    """
    if not parts:
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise ValueError("the engine ray needs Ray Data: pip install 'perception-tokens[ray]'") from error

    started = not ray.is_initialized()
    if started:
        local: dict[str, Any] = {} if "RAY_ADDRESS" in os.environ else {"num_cpus": workers, "include_dashboard": False}
        paths = os.pathsep.join(path for path in sys.path if path)  # workers import what this process does
        ray.init(runtime_env={"env_vars": {"PYTHONPATH": paths}}, log_to_driver=False, **local)
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False  # there is one already
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        rows = [{"number": part.number, "names": json.dumps(part.names)} for part in parts]
        data = ray.data.from_items(rows, override_num_blocks=len(rows))
        worker: Any = _Worker
        made = data.map(worker, fn_constructor_args=(make,), concurrency=(1, min(workers, len(rows))))
        for row in made.iter_rows():
            record = json.loads(row["record"])
            if "error" in record:
                raise ValueError(record["error"])
            yield record
    finally:
        if started:
            ray.shutdown()

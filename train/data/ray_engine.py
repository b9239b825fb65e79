"""Engine of `train.prepare` that runs the shards as tasks of Ray Data, on one machine or many."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from perception.datasets.labelling.jobs import Shard


class _Worker:
    """Writes shards in a process of its own, which loads the teachers once."""

    def __init__(self, make: Callable[[Shard], dict[str, Any]]):
        self.make = make

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            record: dict[str, Any] = self.make(Shard(int(row["number"]), tuple(json.loads(row["names"]))))
        except ValueError as error:  # Ray would wrap the error and print its own stack
            record = {"error": str(error)}
        return {"record": json.dumps(record)}


def ray_engine(
    shards: Sequence[Shard], make: Callable[[Shard], dict[str, Any]], workers: int = 2
) -> Iterator[dict[str, Any]]:
    """Run the shards on the cluster at RAY_ADDRESS, or on a local Ray that is shut down at the end.

    Raises:
        ValueError: if Ray is not installed, or as `make` does.
    """
    if not shards:
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise ValueError("the engine ray needs Ray Data: pip install 'perception-tokens[ray]'") from error

    started = not ray.is_initialized()
    if started:
        local: dict[str, Any] = {} if "RAY_ADDRESS" in os.environ else {"num_cpus": workers, "include_dashboard": False}
        paths = os.pathsep.join(path for path in sys.path if path)  # workers import the same code as this process
        ray.init(runtime_env={"env_vars": {"PYTHONPATH": paths}}, log_to_driver=False, **local)
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False  # `prepare_folder` shows one
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        rows = [{"number": shard.number, "names": json.dumps(shard.names)} for shard in shards]
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

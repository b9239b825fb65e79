"""Exports scenes as parquet files (`python -m perception.scenes.export`): PNG images, float16 depth, object structs."""

from __future__ import annotations

import argparse
import functools
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from perception.datasets.progress import track
from perception.scenes.render import render_scenes
from perception.scenes.styles import STYLES
from vqvae.files import write_whole

_RENDER = 32


def _png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def scene_rows(seeds: Sequence[int], style: str, image_size: int) -> Iterator[dict[str, Any]]:
    """Yield one row per scene: seed, style, image {bytes}, depth in metres (H * W,), object_ids (H * W,), objects."""
    for start in range(0, len(seeds), _RENDER):
        batch = render_scenes(list(seeds[start : start + _RENDER]), style, image_size)
        for index, seed in enumerate(batch.seeds):
            yield {
                "seed": seed,
                "style": style,
                "image": {"bytes": _png(batch.images[index].numpy()), "path": None},
                "height": image_size,
                "width": image_size,
                "depth": batch.depth[index].flatten().numpy().astype(np.float16),
                "object_ids": batch.object_ids[index].flatten().numpy().astype(np.int8),
                "objects": [
                    {"color": o.color, "shape": o.shape, "box_xyxy": list(o.box_xyxy), "depth": o.depth}
                    for o in batch.objects[index]
                ],
            }


def export_parquet(
    folder: str | Path, seeds: Sequence[int], style: str = "standard", image_size: int = 96, rows_per_file: int = 2048
) -> list[Path]:
    """Render `seeds` to parquet files that `datasets.load_dataset("parquet", ...)` reads; return their paths.

    Existing files are kept, so an export that was killed goes on where it stopped.

    Raises:
        ImportError: if pyarrow is not installed (it comes with the `train` extra).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = Path(folder)
    paths = []
    for start in track(range(0, len(seeds), rows_per_file), f"exporting {style} scenes"):
        part = list(seeds[start : start + rows_per_file])
        path = folder / f"{style}-{image_size}-{part[0]:09d}-{part[-1]:09d}.parquet"
        if not path.exists():
            table = pa.Table.from_pylist(list(scene_rows(part, style, image_size)))
            write_whole(path, functools.partial(pq.write_table, table))
        paths.append(path)
    return paths


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the parquet files")
    parser.add_argument("--style", choices=list(STYLES), default="standard")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000, help="number of scenes")
    parser.add_argument("--image-size", type=int, default=96, help="pixels per side of the images")
    args = parser.parse_args(argv)
    paths = export_parquet(
        args.folder, range(args.first_seed, args.first_seed + args.count), args.style, args.image_size
    )
    print(f"{args.count} scenes in {len(paths)} file(s) under {args.folder}")


if __name__ == "__main__":
    main()

"""Depth codes of a scene store, made once by the depth tokenizer and kept beside the scenes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from rich.progress import track

from perception.scenes.store import SceneStore
from vqvae import VQVAE
from vqvae.files import write_whole

_BATCH = 256


def depth_codes(store: SceneStore, tokenizer: VQVAE) -> np.ndarray:
    """Codes (2, N, h * w) of every scene and of its mirror image, from the store's folder or made now.

    The file's name carries a fingerprint of the tokenizer's weights: another tokenizer never reads these codes.
    """
    path = Path(store.folder) / f"depth-codes-{tokenizer.fingerprint()}.npy"
    with FileLock(path.with_suffix(".lock")):  # of several processes of one training the first encodes, the others wait
        if not path.exists():
            _encode(store, tokenizer.eval(), path)
    return np.load(path, mmap_mode="r")


@torch.no_grad()
def _encode(store: SceneStore, tokenizer: VQVAE, path: Path) -> None:
    both: list[list[np.ndarray]] = [[], []]
    for start in track(range(0, len(store), _BATCH), description="depth codes", transient=True):
        depth = torch.from_numpy(store.depth[start : start + _BATCH].astype(np.float32))
        for mirrored in (0, 1):
            encoded = tokenizer.encode(depth.flip(2) if mirrored else depth)  # (b, h, w)
            both[mirrored].append(tokenizer.to_sequence(encoded).to(torch.int16).numpy())
    codes = np.stack([np.concatenate(part) for part in both])

    def write(file: Path) -> None:
        with file.open("wb") as stream:
            np.save(stream, codes)

    write_whole(path, write)

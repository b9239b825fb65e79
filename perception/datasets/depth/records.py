"""Image and depth pairs to records: found, tokenised, asked about."""

from __future__ import annotations

from pathlib import Path

from perception.datasets.depth.code_files import DepthCodes
from perception.datasets.depth.files import DepthFormat
from perception.datasets.depth.jobs import tokenize
from perception.datasets.depth.pairs import find_pairs, read_pairs
from perception.datasets.depth.questions import DepthRules, ask_depth
from perception.datasets.records import RecordSet
from vqvae import VQVAE


def read_depth_pairs(
    depth: Path,
    images: Path | None,
    codes_file: Path,
    vqvae: VQVAE,
    num_locations: int,
    meant: DepthFormat = DepthFormat(),  # noqa: B008
    rules: DepthRules = DepthRules(),  # noqa: B008
) -> RecordSet:
    """Records of all pairs beneath `depth` (see `find_pairs` and `ask_depth`).

    Codes are written to `codes_file`, resumably, and read from there where it exists already.

    Raises:
        ValueError: naming the file that cannot be read, has no image, holds no valid depth, or another shape.
    """
    pairs = find_pairs(depth, images)
    root = depth if depth.is_dir() else depth.parent
    codes = DepthCodes.read(codes_file) if codes_file.exists() else tokenize(depth, codes_file, vqvae, meant)
    if codes.tokenizer != vqvae.fingerprint():
        raise ValueError(
            f"{codes_file} was made by tokenizer {codes.tokenizer}, this one is {vqvae.fingerprint()}; delete the file"
        )
    names = {pair: pair.name_in(root) for pair in pairs}
    missing = sorted(set(names.values()) - set(codes.names))
    if missing:
        raise ValueError(f"{codes_file} lacks the codes of {missing[0]}; delete it, so that it is made anew")
    return ask_depth(read_pairs(pairs, meant), codes, names, vqvae, num_locations, rules)

"""Depth maps as a source of records: what their numbers mean is declared, and bad ones are left out or end the run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from perception import chains
from perception.answers import POINT_LETTERS
from perception.datasets.records import RecordSet
from perception.vocabulary.names import PerceptionVocabulary
from train.data.records import SourcesConfig, read_records
from train.finetune import FinetuneConfig, deciding
from train.loop.command_line import parse_config
from vqvae import VQVAE, VQVAEConfig

VOCABULARY = PerceptionVocabulary(8, (2, 2), 100)


@pytest.fixture
def model() -> VQVAE:
    torch.manual_seed(0)
    return VQVAE(VQVAEConfig(image_size=16, downsample=8, codebook_size=8, codebook_dim=4, channels=8)).eval()


def near_below(folder: Path) -> None:
    """Two images, and 8-bit maps of inverse depth in which what is lower is nearer."""
    for name in ("images", "depth"):
        (folder / name).mkdir()
    near = np.repeat(np.linspace(40, 240, 5).astype(np.uint8), 18)[:, None].repeat(120, 1)  # (90, 120), five bands
    for name in ("a", "b"):
        Image.new("RGB", (120, 90), (90, 120, 150)).save(folder / "images" / f"{name}.jpg")
        Image.fromarray(near).save(folder / "depth" / f"{name}.png")


def read(folder: Path, model: VQVAE, *flags: str, skip_bad: bool = True) -> RecordSet:
    flags = ("--data.depth", str(folder / "depth"), "--data.depth_images", str(folder / "images"), *flags)
    data: SourcesConfig = parse_config(FinetuneConfig, flags).data
    return read_records(data, VOCABULARY, model, folder / "run", skip_bad)


def test_inverse_depth_is_declared(tmp_path: Path, model: VQVAE) -> None:
    near_below(tmp_path)
    for skip_bad in (True, False):
        with pytest.raises(ValueError, match=r"meaning 'inverse' reads.*data\.depth_format declares what"):
            read(tmp_path, model, skip_bad=skip_bad)
    made = read(tmp_path, model, "--data.depth_format.meaning", "inverse")
    asked = [record for record in made.records if record.example.task == chains.DIRECT_DEPTH]
    assert len(asked) == 8
    for record in asked:
        assert record.example.answer == POINT_LETTERS[int(np.argmax([y for _, y in record.marks]))]


def test_an_empty_map_is_left_out_and_named(tmp_path: Path, model: VQVAE) -> None:
    near_below(tmp_path)
    np.save(tmp_path / "depth" / "c.npy", np.zeros((90, 120), np.float32))
    Image.new("RGB", (120, 90)).save(tmp_path / "images" / "c.jpg")
    made = read(tmp_path, model, "--data.depth_format.meaning", "inverse")
    assert made.records and made.skipped == ("c.npy: holds no valid depth (finite and above 0)",)
    with pytest.raises(ValueError, match="c.npy: holds no valid depth"):
        read(tmp_path, model, "--data.depth_format.meaning", "inverse", skip_bad=False)


def test_a_run_that_was_started_without_depth_maps_goes_on() -> None:
    assert not any("depth_format" in name for name in deciding(FinetuneConfig()))

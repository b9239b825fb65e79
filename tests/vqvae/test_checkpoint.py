from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_vqvae import TINY
from torch import Tensor

from vqvae import VQVAE, CheckpointError, VQVAEConfig

SHIPPED = Path(__file__).parents[2] / "tokenizers" / "depth-scenes-100"


@pytest.fixture
def folder(tiny: VQVAE, tmp_path: Path) -> Path:
    tiny.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_what_is_loaded_is_what_was_saved(tiny: VQVAE, folder: Path, depth: Tensor) -> None:
    loaded = VQVAE.from_pretrained(folder)
    assert loaded.config == TINY and not loaded.training
    assert all(x.equal(loaded.state_dict()[name]) for name, x in tiny.state_dict().items())
    assert loaded.encode(depth).equal(tiny.encode(depth))
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_half_precision_halves_the_file_and_loads_as_float32(tiny: VQVAE, folder: Path, depth: Tensor) -> None:
    full = (folder / "model.safetensors").stat().st_size
    tiny.save_pretrained(folder, dtype=torch.float16)
    assert (folder / "model.safetensors").stat().st_size < 0.6 * full
    loaded = VQVAE.from_pretrained(folder)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    codes = loaded.encode(depth)
    torch.testing.assert_close(loaded.decode(codes), tiny.decode(codes), atol=5e-3, rtol=0)


def test_a_missing_tensor_is_named(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.head.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors.*missing tensors \['encoder\.head\.weight'\]"):
        VQVAE.from_pretrained(folder)


def test_an_unexpected_tensor_is_named(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors") | {"extra": torch.zeros(1)}
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"unexpected tensors \['extra'\]"):
        VQVAE.from_pretrained(folder)


def test_weights_of_another_config_are_refused(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text()) | {"codebook_size": 32}
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"quantizer\.\w+ has shape \(16.*\), config\.json asks for \(32"):
        VQVAE.from_pretrained(folder)


def test_an_unknown_config_key_is_refused(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text()) | {"colour": "red"}
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"config\.json: unknown config keys \['colour'\]; known keys"):
        VQVAE.from_pretrained(folder)


def test_cut_and_missing_files_are_named(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is cut short"):
        VQVAE.from_pretrained(folder)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing"):
        VQVAE.from_pretrained(folder)
    (folder / "config.json").write_text('{"image_size": 8')
    with pytest.raises(CheckpointError, match=r"config\.json is no readable JSON"):
        VQVAE.from_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        VQVAE.from_pretrained(folder)
    with pytest.raises(CheckpointError, match="no folder"):
        VQVAE.from_pretrained(folder / "elsewhere")


def test_a_failed_save_leaves_the_old_checkpoint(tiny: VQVAE, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(path: Path, data: bytes) -> None:
        path.open("wb").write(data[:100])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="disk full"):
        tiny.save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_the_shipped_tokenizer_is_what_the_plan_says(depth: Tensor) -> None:
    tokenizer = VQVAE.from_pretrained(SHIPPED)
    assert tokenizer.config == VQVAEConfig()
    assert (tokenizer.config.num_codes, tokenizer.config.codebook_size) == (100, 128)
    near = tokenizer.normalise(depth).nearness
    assert float((tokenizer.decode(tokenizer.encode(depth)) - near).abs().mean()) < 0.03
    assert tokenizer.encode(torch.linspace(9, 1, 80)[None, :, None].expand(1, 80, 80))[0, :, 5].diff().min() >= 0

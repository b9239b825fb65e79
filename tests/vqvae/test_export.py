from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_vqvae import TINY
from torch import Tensor

from vqvae import VQVAE, VQVAEConfig
from vqvae.export import export_tokenizer

CONFIGS = {
    "ema": TINY,
    "fsq": replace(TINY, quantizer="fsq", codebook_dim=2, fsq_levels=(4, 4)),
    "nested": replace(TINY, nested=True, normalisation="metric", min_depth=1.0, max_depth=6.0),
}


def trained_a_little(config: VQVAEConfig) -> VQVAE:
    torch.manual_seed(0)
    model = VQVAE(config).train()
    with torch.no_grad():
        model.encoder.head.weight.mul_(8)  # far apart, so that the cells of a fixed lattice are told apart too
    model(maps(16, config.image_size))  # the codebook comes from the vectors, so that all codes are in use
    return model.eval()


def maps(count: int, size: int) -> Tensor:
    """(count, S, S), with holes of every kind"""
    generator = torch.Generator().manual_seed(count)
    depth = 1 + 5 * torch.rand((count, 4, 4), generator=generator)
    depth = torch.nn.functional.interpolate(depth[:, None], size=(size, size), mode="bilinear")[:, 0]
    kind = torch.randint(0, 20, depth.shape, generator=generator)
    for number, hole in enumerate((torch.nan, torch.inf, 0.0, -1.0)):
        depth = torch.where(kind == number, hole, depth)
    return depth.contiguous()


def run_torch(path: Path, value: Tensor) -> list[Tensor]:
    found = torch.export.load(path).module()(value)
    return list(found) if isinstance(found, tuple) else [found]


def run_onnx(path: Path, value: Tensor) -> list[Tensor]:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(x) for x in session.run(None, {session.get_inputs()[0].name: value.numpy()})]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["torch", "onnx"])
@pytest.mark.parametrize("name", CONFIGS)
def test_programs_give_the_same_codes_and_maps(name: str, form: str, tmp_path: Path) -> None:
    if form == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    run, model = {"torch": run_torch, "onnx": run_onnx}[form], trained_a_little(CONFIGS[name])
    encoder, decoder = export_tokenizer(model, tmp_path / "out", form)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted([encoder.name, decoder.name])
    for count in (1, 5):
        depth = maps(count, 16)
        codes, ranges = run(encoder, depth)
        assert codes.equal(model.encode(depth)) and codes.dtype == torch.long
        assert codes.unique().numel() > 4, "not one code for all"
        torch.testing.assert_close(ranges, model.normalise(depth).depth_range)
        (nearness,) = run(decoder, codes)
        torch.testing.assert_close(nearness, model.decode(codes), atol=1e-5, rtol=0)
    if CONFIGS[name].nested:
        order = list(CONFIGS[name].cell_order)
        first = torch.full((1, 16), -1)
        first[0, order[:5]] = codes.flatten(1)[0, order[:5]]
        (nearness,) = run(decoder, first.view(1, 4, 4))
        expected = model.decode(model.to_sequence(codes)[:1, :5])
        torch.testing.assert_close(nearness, expected, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_a_map_without_valid_pixels_is_told_by_its_range(tmp_path: Path) -> None:
    encoder, _ = export_tokenizer(trained_a_little(TINY), tmp_path, "torch")
    codes, ranges = run_torch(encoder, torch.stack([torch.full((16, 16), np.nan), maps(1, 16)[0]]))
    assert ranges[0].tolist() == [np.inf, -np.inf] and bool(ranges[1].isfinite().all())
    assert 0 <= int(codes.min()) and int(codes.max()) < 16


@pytest.mark.slow
def test_unknown_forms_are_refused_and_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = trained_a_little(TINY).train()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    export_tokenizer(model, tmp_path, "torch")
    assert model.training and all(x.equal(before[name]) for name, x in model.state_dict().items())
    with pytest.raises(ValueError, match="unknown form 'tflite'; known: onnx, torch"):
        export_tokenizer(model, tmp_path, "tflite")

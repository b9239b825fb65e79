from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from tiny_vqvae import TINY
from torch import Tensor

from vqvae import VQVAE, VQVAEConfig

FSQ_CONFIG = replace(TINY, quantizer="fsq", codebook_dim=2, fsq_levels=(4, 4))


def test_maps_of_any_size_become_a_grid_of_codes_and_come_back(tiny: VQVAE, depth: Tensor) -> None:
    codes = tiny.encode(depth)
    assert codes.shape == (4, 4, 4) and codes.dtype == torch.long
    assert 0 <= int(codes.min()) and int(codes.max()) < 16
    nearness = tiny.decode(codes)
    assert nearness.shape == (4, 16, 16) and 0 <= float(nearness.min()) and float(nearness.max()) <= 1
    assert tiny.decode(codes.flatten(1), size=(20, 24)).shape == (4, 20, 24)


def test_decoded_depth_lies_in_the_range_given(tiny: VQVAE, depth: Tensor) -> None:
    depth_range = tiny.normalise(depth).depth_range
    assert depth_range.tolist() == [[1.5, 9.0], [pytest.approx(1.8), 9.0], [pytest.approx(2.0), 9.0], [2.0, 9.0]]
    decoded = tiny.decode(tiny.encode(depth), depth_range)
    assert float(decoded.min()) >= 1.5 - 1e-4 and float(decoded.max()) <= 9 + 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("config", [TINY, FSQ_CONFIG], ids=["ema", "fsq"])
def test_it_learns_and_every_parameter_moves(config: VQVAEConfig, depth: Tensor) -> None:
    torch.manual_seed(0)
    model = VQVAE(config).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    errors = []
    for _ in range(60):
        output = model(depth)
        output.losses.total.backward()
        optimizer.step()
        optimizer.zero_grad()
        errors.append(output.losses.l1.item())
    assert errors[-1] < 0.5 * errors[0]
    still = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    assert not still
    assert 1 <= float(output.perplexity) <= config.codebook_size
    assert output.reconstruction.shape == (4, 16, 16) and output.codes.shape == (4, 4, 4)


def test_losses_do_not_look_into_holes(tiny: VQVAE, depth: Tensor) -> None:
    mask = torch.ones_like(depth, dtype=torch.bool)
    mask[:, :, 12:] = False
    spoiled = torch.where(mask, depth, 1e-3)  # would be by far the nearest
    assert tiny(depth, mask).losses.total.equal(tiny(spoiled, mask).losses.total)


def test_hidden_pixels_are_still_asked_for(tiny: VQVAE, depth: Tensor) -> None:
    visible = torch.rand(depth.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    hidden, whole = tiny(depth, visible=visible), tiny(depth)
    assert not hidden.reconstruction.equal(whole.reconstruction)
    assert tiny(depth, visible=torch.ones_like(visible)).reconstruction.equal(whole.reconstruction)


def test_soft_decoding_of_certain_codes_is_decoding(tiny: VQVAE, depth: Tensor) -> None:
    codes = tiny.encode(depth)
    one_hot = torch.nn.functional.one_hot(codes.flatten(1), 16).float()  # (4, 16, 16)
    torch.testing.assert_close(tiny.decode_soft(one_hot), tiny.decode(codes))


def test_a_loss_on_the_softly_decoded_map_reaches_the_probabilities(tiny: VQVAE) -> None:
    logits = torch.zeros(2, 16, 16, requires_grad=True)
    tiny.decode_soft(logits.softmax(-1)).sum().backward()
    assert logits.grad is not None and float(logits.grad.abs().sum()) > 0


@pytest.mark.parametrize("config", [TINY, FSQ_CONFIG], ids=["ema", "fsq"])
def test_a_sorted_codebook_rises_from_far_to_near_and_decodes_as_before(config: VQVAEConfig, depth: Tensor) -> None:
    torch.manual_seed(1)
    model = VQVAE(config).train()
    model(depth)
    model.eval()
    before, codes_before = model.decode(model.encode(depth)), model.encode(depth)
    order = model.sort_codebook(depth)
    codes = model.encode(depth)
    assert order.sort().values.equal(torch.arange(16))
    assert order[codes].equal(codes_before)
    torch.testing.assert_close(model.decode(codes), before)
    cells = torch.nn.functional.avg_pool2d(before[:, None], 4)[:, 0]
    means = torch.stack([cells[codes == code].mean() for code in codes.unique()])  # in order of code
    assert bool((means.diff() >= -1e-6).all())
    assert model.sort_codebook(depth).equal(torch.arange(16)), "sorted already"


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.zeros(1, 5, 4, dtype=torch.long), r"\(B, 4, 4\)"),
        (torch.zeros(1, 4, 4), "integers"),
        (torch.full((1, 4, 4), 16), r"0\.\.15"),
    ],
)
def test_codes_that_cannot_be_are_refused(tiny: VQVAE, codes: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.decode(codes)


def test_probabilities_and_ranges_of_another_shape_are_refused(tiny: VQVAE) -> None:
    with pytest.raises(ValueError, match="softmax"):
        tiny.decode_soft(torch.zeros(1, 16, 17))
    with pytest.raises(ValueError, match="depth_range"):
        tiny.decode(torch.zeros(2, 4, 4, dtype=torch.long), torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_size": 81}, "multiple of downsample"),
        ({"downsample": 6}, "power of two"),
        ({"quantizer": "vq"}, "ema, fsq"),
        ({"quantizer": "fsq", "fsq_levels": (4, 8), "codebook_dim": 2}, "multiply to codebook_size"),
        ({"quantizer": "fsq", "fsq_levels": (8, 16)}, "codebook_dim"),
        ({"fsq_levels": (8, 16)}, "leave them empty"),
        ({"normalisation": "log"}, "relative_inverse"),
        ({"normalisation": "metric", "min_depth": 3.0, "max_depth": 1.0}, "min_depth < max_depth"),
        ({"max_depth": 1.0}, "metric"),
        ({"decay": 1.0}, "decay"),
    ],
)
def test_configs_that_contradict_themselves_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VQVAEConfig(**values)  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_package_is_light_to_import() -> None:
    heavy = "{'transformers', 'gradio', 'perception', 'vector_quantize_pytorch'}"
    done = subprocess.run(
        [sys.executable, "-c", f"import vqvae, sys; print({heavy} & set(sys.modules))"], capture_output=True
    )
    assert done.stdout.strip() == b"set()", done

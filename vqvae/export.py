"""Export a tokenizer's encoder and decoder as programs for machines without this package.

    from vqvae.export import export_tokenizer

    export_tokenizer(model, "exported")                # encoder.onnx, decoder.onnx; needs onnx and onnxscript
    export_tokenizer(model, "exported", form="torch")  # encoder.pt2, decoder.pt2: torch.export, for torch.export.load

The encoder takes depth (B, S, S) float32, at the tokenizer's image_size, in any unit, larger is farther; NaN, infinite
and non-positive pixels are holes. It gives codes (B, h, w) int64 and depth_range (B, 2) float32, near and far in the
unit of the input; (inf, -inf) means that a map had no valid pixel and its codes mean nothing; with "metric" the range
is the config's even then. Resize maps of other sizes so that holes do not bleed
(`vqvae.normalisation.resize_masked`): as inverse depth if the normalisation is "relative_inverse", else as depth.

The decoder takes codes (B, h, w) int64, 0..K-1, and gives nearness (B, S, S) float32 in [0, 1], 1 = nearest; -1 stands
for a missing code (nested tokenizers only). `vqvae.normalisation.nearness_to_depth` turns nearness into depth.

Batches may have any size B. The programs do not check their input.
"""

from __future__ import annotations

import copy
import functools
import io
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim

from vqvae.files import write_whole
from vqvae.model import VQVAE
from vqvae.normalisation import Normalised, depth_ranges, depth_to_nearness, usable_pixels

FORMS = {"onnx": ".onnx", "torch": ".pt2"}
"""File ending per form"""
_ANY_BATCH = ({0: Dim("batch")},)


class EncoderProgram(nn.Module):
    """Depth (B, S, S) to codes (B, h, w) and depth_range (B, 2)."""

    def __init__(self, model: VQVAE):
        super().__init__()
        self.model = model

    def forward(self, depth: Tensor) -> tuple[Tensor, Tensor]:
        model = self.model
        valid = usable_pixels(depth)
        depth = torch.where(valid, depth, 1)  # (B, S, S)
        ranges = depth_ranges(depth, valid, model.config)  # (B, 2)
        values = torch.where(valid, 2 * depth_to_nearness(depth, ranges, model.config) - 1, 0)
        z = model._vectors(Normalised(values[:, None], valid[:, None], ranges))  # (B, h, w, D)
        codes = model.quantizer.encode(z.flatten(0, 2))
        return codes.view(z.shape[0], z.shape[1], z.shape[2]), ranges


class DecoderProgram(nn.Module):
    """Codes (B, h, w) to nearness (B, S, S)."""

    def __init__(self, model: VQVAE):
        super().__init__()
        self.model = model

    def forward(self, codes: Tensor) -> Tensor:
        vectors = self.model.codebook[codes.clamp_min(0)]  # (B, h, w, D)
        if self.model.config.nested:
            vectors = torch.where(codes[..., None] < 0, self.model.absent, vectors)
        return self.model._decode_vectors(vectors).clamp(0, 1)


def _programs(model: VQVAE) -> dict[str, tuple[nn.Module, Tensor]]:
    """The programs on the CPU in float32, each with an example input of two maps."""
    size, grid = model.config.image_size, model.config.grid_size
    encoder, decoder = (copy.deepcopy(model).cpu().float().eval() for _ in range(2))
    del encoder.decoder, decoder.encoder  # a program carries its own weights only
    ramp = torch.linspace(1, 2, 2 * size * size).view(2, size, size)
    codes = torch.zeros(2, grid, grid, dtype=torch.long)
    programs: dict[str, tuple[nn.Module, Tensor]] = {"encoder": (EncoderProgram(encoder), ramp)}
    return programs | ({"decoder": (DecoderProgram(decoder), codes)} if model.config.decodes else {})


@torch.no_grad()
def export_tokenizer(model: VQVAE, folder: str | Path, form: str = "onnx") -> list[Path]:
    """Write encoder and decoder (if there is one) to `folder`, each whole or not at all, and return the files.

    Raises:
        ValueError: for an unknown form.
        ImportError: for "onnx" without the packages onnx and onnxscript.
    """
    if form not in FORMS:
        raise ValueError(f"unknown form {form!r}; known: {', '.join(FORMS)}")
    folder = Path(folder)
    writer = _write_onnx if form == "onnx" else _write_torch
    written = []
    for name, (program, example) in _programs(model).items():
        path = folder / f"{name}{FORMS[form]}"
        write_whole(path, functools.partial(writer, program.eval(), example))
        written.append(path)
    return written


def _write_torch(program: nn.Module, example: Tensor, path: Path) -> None:
    archive = io.BytesIO()  # written to a path, it would carry the name of the partial file
    torch.export.save(torch.export.export(program, (example,), dynamic_shapes=_ANY_BATCH), archive)
    path.write_bytes(archive.getvalue())


def _write_onnx(program: nn.Module, example: Tensor, path: Path) -> None:
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError("ONNX files need two packages: pip install onnx onnxscript; or write form='torch'") from error
    inputs, outputs = ("depth", ["codes", "depth_range"]) if example.is_floating_point() else ("codes", ["nearness"])
    torch.onnx.export(
        program,
        (example,),
        path,
        input_names=[inputs],
        output_names=outputs,
        dynamic_shapes=_ANY_BATCH,
        dynamo=True,
        external_data=False,
        verbose=False,
    )

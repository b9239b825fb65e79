"""Tokenizers that others have published, read from their own files: AURORA's, AiT's, MolmoAct's, 4M's, and VQModels.

The first three have one architecture, with a plain state dict that says neither how depth is normalised nor how large a
map is. So the normalisation is chosen by name. The codes are those of the original on the same maps. Of 4M's the
encoder and the codebook are read; their decoder is a diffusion model, and such a tokenizer does not decode here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae.checkpoint import CONFIG_NAME, CheckpointError
from vqvae.config import VQVAEConfig
from vqvae.model import VQVAE
from vqvae.published_networks import HEAD_WIDTH

_SIZES: dict[str, Any] = {"network": "convolutional", "image_size": 320, "downsample": 32}
NORMALISATIONS = {
    "aurora": VQVAEConfig(**_SIZES, range_percentile=0, value_range=(-1, 1)),
    "molmoact": VQVAEConfig(**_SIZES, range_percentile=0, value_range=(0, 1)),
    "ait": VQVAEConfig(
        **(_SIZES | {"image_size": 480}),
        normalisation="metric",
        min_depth=0,
        max_depth=10,
        fill_holes=False,
        value_range=(10, 0),
    ),
    "4m": VQVAEConfig(
        network="transformer", image_size=224, downsample=16, normalisation="relative", range_percentile=0
    ),
}
"""Normalisation and size of maps by name. aurora: nearness, min-max per map, in [-1, 1]; molmoact: the same in [0, 1];
ait: depth in metres up to 10, and 0 in holes; 4m: depth, standardised per map by the middle 80 % of its pixels"""
_DIFFUSERS = "diffusion_pytorch_model.safetensors"
_CONVOLUTIONAL = {
    "encoder.": "encoder.layers.",
    "decoder.": "decoder.layers.",
    "_vq_vae._embedding.weight": "quantizer.codebook",
    "_vq_vae._embedding": "quantizer.codebook",
    "_vq_vae._ema_cluster_size": "quantizer.cluster_size",
    "_vq_vae._ema_w": "quantizer.vector_sum",
}
_VQMODEL = {
    "quant_conv.": "encoder.last.",
    "post_quant_conv.": "decoder.first.",
    "encoder.": "encoder.network.",
    "decoder.": "decoder.network.",
    "quantize.embedding.weight": "quantizer.codebook",
}
_4M = {
    "encoder.pos_emb": "encoder.position",
    "encoder.proj.": "encoder.patches.",
    "encoder.blocks.": "encoder.layers.",
    "encoder.norm_mlp.": "encoder.norm.",
    "encoder.post_mlp.fc1.": "encoder.mlp.0.",
    "encoder.post_mlp.fc2.": "encoder.mlp.2.",
    "quant_proj.": "encoder.last.",
    "quantize._codebook.embed": "quantizer.codebook",
    "quantize._codebook.cluster_size": "quantizer.cluster_size",
}
"""Beginnings of the tensors' names, there and in a `VQVAE`"""
_4M_LAYER = {".attn.qkv.": ".self_attn.in_proj_", ".attn.proj.": ".self_attn.out_proj.", ".mlp.fc": ".linear"}
"""Middles of the names of a layer's tensors, there and in torch's TransformerEncoderLayer"""
_4M_UNUSED = ("decoder.", "quantize._codebook.initted")
_INNER = ("weights", "state_dict", "model")
"""Keys under which training scripts save a state dict"""


def import_tokenizer(source: str | Path, normalisation: str, image_size: int | None = None) -> VQVAE:
    """Read a published tokenizer.

    Args:
        source: a state dict (.pt, .pth, .safetensors) in AiT's or 4M's layout, or the folder of a diffusers VQModel.
        normalisation: a name of `NORMALISATIONS`; "4m" for 4M's, and no other.
        image_size: side of the maps; None for the published one, which for a VQModel is its sample_size.

    Raises:
        ValueError: for an unknown name or an image_size that does not fit.
        CheckpointError: for a file that is missing, holds more than tensors, or is of another architecture.
        ImportError: for a VQModel without diffusers.
    """
    if normalisation not in NORMALISATIONS:
        raise ValueError(f"unknown normalisation {normalisation!r}; known: {', '.join(NORMALISATIONS)}")
    source, start = Path(source), NORMALISATIONS[normalisation]
    if not source.exists():
        raise CheckpointError(f"{source} does not exist; give a .pt, .pth or .safetensors file, or a VQModel's folder")
    read = _read_vqmodel if source.is_dir() else _read_4m if normalisation == "4m" else _read_convolutional
    config, tensors = read(source, start, image_size)
    model = VQVAE(config)
    tensors |= {"quantizer.started": torch.tensor(True)}
    tensors.setdefault("quantizer.cluster_size", torch.ones(config.codebook_size))
    tensors.setdefault("quantizer.vector_sum", tensors["quantizer.codebook"].clone())
    _check_same(source, tensors, model.state_dict())
    model.load_state_dict(tensors)
    return model.eval()


def _check_same(source: Path, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    shapes = [{name: tuple(value.shape) for name, value in tensors.items()} for tensors in (found, wanted)]
    odd = sorted(name for name in {**found, **wanted} if shapes[0].get(name) != shapes[1].get(name))
    if odd:
        got, expected = (shape.get(odd[0], "absent") for shape in shapes)
        raise CheckpointError(
            f"{source} is of an unknown architecture: {len(odd)} tensors differ from the published one's, such as "
            f"{odd[0]} ({got}, expected {expected}); known are the VQVAEs of AURORA, AiT and MolmoAct, 4M's for depth, "
            "and VQModels"
        )


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a state dict without running any code that the file holds."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        held: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, KeyError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} is cut short or no file of weights ({_first_line(error)}); fetch it anew"
        ) from None
    except Exception as error:  # pickle's UnpicklingError, from files of older versions ValueError and others
        raise CheckpointError(
            f"{path} holds more than tensors ({_first_line(error)}), and nothing else is read; if you trust it, save "
            "its state dict alone with torch.save"
        ) from None
    for key in _INNER:
        if isinstance(held, dict) and isinstance(held.get(key), dict):
            held = held[key]
    if not isinstance(held, dict) or not held or not all(isinstance(value, Tensor) for value in held.values()):
        raise CheckpointError(f"{path} holds no state dict, got {type(held).__name__}; save one with torch.save")
    return {str(name).removeprefix("module."): value for name, value in held.items()}


def _renamed(held: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    renamed = {}
    for name, value in held.items():
        old = next((beginning for beginning in names if name.startswith(beginning)), "")
        renamed[names.get(old, "") + name.removeprefix(old)] = value.float()
    return renamed


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:120]


def _read_convolutional(
    path: Path, start: VQVAEConfig, image_size: int | None
) -> tuple[VQVAEConfig, dict[str, Tensor]]:
    """Config and tensors of AiT's architecture, all sizes but image_size read off the tensors' shapes."""
    held = _read_tensors(path)
    codebook = held.get("_vq_vae._embedding", held.get("_vq_vae._embedding.weight"))
    strided = [v for n, v in held.items() if re.fullmatch(r"encoder\.\d+\.weight", n) and v.shape[2:] == (4, 4)]
    blocks = [name for name in held if re.fullmatch(r"encoder\.\d+\.net\.0\.weight", name)]
    if "quantize._codebook.embed" in held:
        raise ValueError(f"{path} is a tokenizer of 4M's, which standardises depth; give the normalisation 4m")
    if codebook is None or codebook.ndim != 2 or len(strided) < 2:
        raise CheckpointError(
            f"{path} is of an unknown architecture: it has {len(held)} tensors, such as {', '.join(sorted(held)[:3])}, "
            "and none of a codebook _vq_vae._embedding behind convolutions of stride 2; known are the VQVAEs of "
            "AURORA, AiT and MolmoAct, and diffusers' VQModel"
        )
    config = replace(
        start,
        image_size=start.image_size if image_size is None else image_size,
        downsample=2 ** len(strided),
        channels=max(weight.shape[0] for weight in strided),
        num_res_blocks=len(blocks),
        codebook_size=codebook.shape[0],
        codebook_dim=codebook.shape[1],
    )
    return config, _renamed(held, _CONVOLUTIONAL)


def _read_4m(path: Path, start: VQVAEConfig, image_size: int | None) -> tuple[VQVAEConfig, dict[str, Tensor]]:
    """Config and tensors of the encoder and codebook of 4M's tokenizers; all sizes but image_size are the tensors'."""
    held = {name: value for name, value in _read_tensors(path).items() if not name.startswith(_4M_UNUSED)}
    position, patches, codebook = (
        held.get(name, torch.empty(0))
        for name in ("encoder.pos_emb", "encoder.proj.weight", "quantize._codebook.embed")
    )
    if position.ndim != 4 or patches.ndim != 4 or codebook.ndim != 2 or patches.shape[0] % HEAD_WIDTH:
        raise CheckpointError(
            f"{path} is no tokenizer of 4M's for depth: it has {len(held)} tensors of an encoder, such as "
            f"{', '.join(sorted(held)[:3])}, and not encoder.pos_emb, encoder.proj and quantize._codebook of a vision "
            f"transformer with heads of {HEAD_WIDTH} channels; aurora, molmoact and ait are the other normalisations"
        )
    config = replace(
        start,
        image_size=start.image_size if image_size is None else image_size,
        downsample=patches.shape[-1],
        channels=patches.shape[0],
        num_res_blocks=sum(name.endswith(".attn.qkv.weight") for name in held),
        codebook_size=codebook.shape[0],
        codebook_dim=codebook.shape[1],
    )
    tensors = _renamed(held, _4M)
    for there, here in _4M_LAYER.items():
        tensors = {name.replace(there, here): value for name, value in tensors.items()}
    grid = (config.grid_size, config.grid_size)
    tensors["encoder.position"] = F.interpolate(tensors["encoder.position"], grid, mode="bicubic")
    tensors["quantizer.codebook"] = F.normalize(tensors["quantizer.codebook"], dim=1)
    return config, tensors


def _read_vqmodel(folder: Path, start: VQVAEConfig, image_size: int | None) -> tuple[VQVAEConfig, dict[str, Tensor]]:
    """Config and tensors of a diffusers VQModel."""
    try:
        settings = json.loads((folder / CONFIG_NAME).read_text())
        kind = settings.get("_class_name")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder} has no readable {CONFIG_NAME} ({_first_line(error)}); fetch it anew") from None
    path = folder / _DIFFUSERS
    if kind != "VQModel" or not path.is_file():
        raise CheckpointError(
            f"{folder} must hold a VQModel of diffusers: {CONFIG_NAME} with _class_name VQModel, got {kind}, and "
            f"{_DIFFUSERS}"
        )
    held = _read_tensors(path)
    codebook = held.get("quantize.embedding.weight", torch.empty(0, 0))
    config = replace(
        start,
        network="vqmodel",
        vqmodel={name: value for name, value in settings.items() if not name.startswith("_")},
        image_size=settings.get("sample_size", start.image_size) if image_size is None else image_size,
        downsample=2 ** (len(settings.get("block_out_channels", [64])) - 1),
        codebook_size=max(1, codebook.shape[0]),
        codebook_dim=max(1, codebook.shape[1]),
    )
    return config, _renamed(held, _VQMODEL)

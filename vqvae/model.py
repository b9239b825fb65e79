"""The VQVAE for depth maps."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from torch import Tensor, nn

from vqvae.checkpoint import CONFIG_NAME, WEIGHTS_NAME, CheckpointError, read_config, read_weights, write_checkpoint
from vqvae.config import VQVAEConfig
from vqvae.holes import fill
from vqvae.losses import GRADIENT_WEIGHT, L2_WEIGHT, Losses, reconstruction_losses
from vqvae.nesting import random_budgets
from vqvae.networks import Decoder, Encoder
from vqvae.normalisation import Normalised, check_mask, nearness_to_depth, normalise_depth
from vqvae.published_networks import (
    ConvolutionalDecoder,
    ConvolutionalEncoder,
    NoDecoder,
    TransformerEncoder,
    VQModelDecoder,
    VQModelEncoder,
)
from vqvae.quantizer import QUANTIZER_CLASSES, perplexity

NETWORK_CLASSES: dict[str, tuple[type[nn.Module], type[nn.Module]]] = {
    "wide": (Encoder, Decoder),
    "convolutional": (ConvolutionalEncoder, ConvolutionalDecoder),
    "vqmodel": (VQModelEncoder, VQModelDecoder),
    "transformer": (TransformerEncoder, NoDecoder),
}


@dataclass(frozen=True)
class VQVAEOutput:
    """Output of `VQVAE.forward`."""

    reconstruction: Tensor
    """(B, S, S) nearness, unclamped"""
    codes: Tensor
    """(B, h, w) long"""
    losses: Losses
    perplexity: Tensor
    """Perplexity () of the batch's codes, 1 to codebook_size"""


def _as_in(network: nn.Module, x: Tensor) -> Tensor:
    """Convert the input of a network to its precision, which `half` and `bfloat16` change."""
    weight = next(network.parameters(), None)
    return x if weight is None else x.to(weight.dtype)


class VQVAE(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="vqvae",
    license="apache-2.0",
    tags=["depth", "vqvae", "tokenizer"],
):
    """Encode depth maps to a small grid of codes, and decode them.

    Depth is in any unit, larger is farther. The network works on *nearness* in [0, 1], 1 = nearest (see
    `VQVAEConfig.normalisation`). Codes are integers 0..K-1; after `sort_codebook` they rise from far to near.

    Departures from AURORA's tokenizer: holes are filled in and no loss is taken there; the codebook revives dead
    codes and is equal on all ranks; the encoder has a narrow field of view and the decoder a wide one.
    """

    cell_order: Tensor
    cell_rank: Tensor
    absent: nn.Parameter
    """(D,): the vector in place of missing codes. Nested models only"""

    def __init__(self, config: VQVAEConfig | None = None):
        super().__init__()
        self.config = config or VQVAEConfig()
        encoder, decoder = NETWORK_CLASSES[self.config.network]
        self.encoder = encoder(self.config)
        self.quantizer = QUANTIZER_CLASSES[self.config.quantizer](self.config)
        self.decoder = decoder(self.config)
        order = torch.tensor(self.config.cell_order)  # (N,): cell of each place in the sequence
        self.register_buffer("cell_order", order, persistent=False)
        self.register_buffer("cell_rank", order.argsort(), persistent=False)  # (N,): place in the sequence of each cell
        if self.config.nested:
            self.absent = nn.Parameter(torch.randn(self.config.codebook_dim) / math.sqrt(self.config.codebook_dim))

    @property
    def codebook(self) -> Tensor:
        """(K, D): the vectors of the codes"""
        return self.quantizer.codebook

    def fingerprint(self) -> str:
        """Twelve hexadecimal digits of the weights' SHA-256, which identify the tokenizer that codes belong to."""
        digest = hashlib.sha256()
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().float().contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()[:12]

    def normalise(self, depth: Tensor, mask: Tensor | None = None) -> Normalised:
        """Prepare depth (B, H, W) and its validity (B, H, W) for the encoder. Raises ValueError for bad input."""
        return normalise_depth(depth, mask, self.config)

    def _vectors(self, normalised: Normalised) -> Tensor:
        values, mask = normalised.values, normalised.mask
        # Nothing to fill is the common case; a program that is being compiled or exported cannot look.
        if self.config.fill_holes and (torch.compiler.is_compiling() or not bool(mask.all())):
            values, mask = fill(values[:, 0], mask[:, 0])[:, None], torch.ones_like(mask)
        x = _as_in(self.encoder, torch.cat([values, mask.to(values.dtype)], 1))  # (B, 2, S, S)
        z = self.encoder(x.contiguous(memory_format=torch.channels_last))  # (B, D, h, w)
        return z.permute(0, 2, 3, 1)  # (B, h, w, D)

    def _decode_vectors(self, quantized: Tensor) -> Tensor:
        """Decode vectors (B, h, w, D) to nearness (B, S, S), unclamped."""
        return self.decoder(_as_in(self.decoder, quantized.permute(0, 3, 1, 2))).float()

    @torch.no_grad()
    def encode(self, depth: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encode depth maps (B, H, W) of any size to codes (B, h, w).

        Args:
            depth: any unit, larger is farther; NaN, infinite and non-positive pixels are holes.
            mask: (B, H, W), False or 0 where depth must not be used.

        Raises:
            ValueError: for depth that is no tensor (B, H, W), a mask of another shape or that is no tensor, or a map
                without a valid pixel.
        """
        z = self._vectors(self.normalise(depth, mask))  # (B, h, w, D)
        return self.quantizer.encode(z.flatten(0, 2)).view(z.shape[:3])

    def to_sequence(self, codes: Tensor) -> Tensor:
        """Codes (B, h, w) as a sequence (B, h*w), in the order in which they are written as tokens.

        The order is row by row, or coarse to fine for nested codes (`VQVAEConfig.cell_order`). `decode` takes
        either form.
        """
        return self._check_codes(codes).flatten(1)[:, self.cell_order]

    @torch.no_grad()
    def decode(self, codes: Tensor, depth_range: Tensor | None = None, size: tuple[int, int] | None = None) -> Tensor:
        """Decode codes (B, h, w), or a sequence of them (B, h*w), to maps (B, S, S) or (B, *size).

        See `to_sequence` for the order of a sequence. A nested tokenizer (`VQVAEConfig.nested`) also decodes
        the first n codes of a sequence, (B, n).

        Args:
            codes: integers 0..K-1.
            depth_range: (B, 2), near and far of each map, as `normalise(depth).depth_range`. With it the maps are depth
                in its unit, without it nearness in [0, 1].
            size: height and width of the maps; by default the config's image_size.

        Raises:
            ValueError: for codes that are not integers, of another grid or out of range, or a depth_range not (B, 2);
                for any codes where the tokenizer has no decoder (`VQVAEConfig.decodes`).
        """
        codes = self._check_codes(codes)
        vectors = self.codebook[codes]  # (B, h, w, D) or (B, n, D)
        return self._finish(self._place(vectors) if codes.ndim == 2 else vectors, depth_range, size)

    def decode_soft(
        self, probabilities: Tensor, depth_range: Tensor | None = None, size: tuple[int, int] | None = None
    ) -> Tensor:
        """Decode probabilities over codes: (B, h*w, K), or (B, n, K) for a nested tokenizer.

        The mean of the codebook under the probabilities is decoded. This is differentiable, so that a loss on
        the map reaches whatever made the probabilities.
        """
        self._check_probabilities(probabilities)
        quantized = probabilities.to(self.codebook.dtype) @ self.codebook  # (B, n, D)
        return self._finish(self._place(quantized), depth_range, size)

    def confidence(self, probabilities: Tensor) -> Tensor:
        """Confidence (B, h, w) in [0, 1] of the cells of a map decoded from probabilities (B, n, K).

        It is one minus the entropy of a cell's probabilities over log K, the largest possible: 1 if one code
        has all the probability, 0 if all are equal, and 0 for cells beyond the first n of a nested tokenizer.
        """
        self._check_probabilities(probabilities)
        entropy = torch.special.entr(probabilities.float()).sum(-1)  # (B, n)
        certainty = (1 - entropy / math.log(max(2, self.config.codebook_size))).clamp(0, 1)
        places = F.pad(certainty, (0, self.config.num_codes - certainty.shape[1]))  # (B, N)
        return places[:, self.cell_rank].view(-1, self.config.grid_size, self.config.grid_size)

    @torch.no_grad()
    def encode_confidence(self, depth: Tensor, mask: Tensor | None = None) -> Tensor:
        """Confidence (B, h, w) in [0, 1] of the codes that `encode` gives for depth (B, H, W), by their margin.

        It is 1 - d1 / d2, where d1 and d2 are the distances of a cell's vector from its code and from the
        runner-up (the ratio test of Lowe 2004): 0 if the two tie and the least noise would change the code, 1
        if the vector equals the code's own. It is multiplied by the share of the cell's pixels that were
        measured, so that a filled hole counts for nothing.
        """
        normalised = self.normalise(depth, mask)
        z = self._vectors(normalised)  # (B, h, w, D)
        if self.config.codebook_size == 1:
            margin = torch.ones(z.shape[:3], device=z.device)
        else:
            nearest = self.quantizer.distances(z.flatten(0, 2)).topk(2, largest=False).values  # (B*h*w, 2)
            ratio = nearest[:, 0] / nearest[:, 1].clamp_min(torch.finfo(nearest.dtype).tiny)
            margin = (1 - ratio).clamp(0, 1).view(z.shape[:3])  # (B, h, w)
        return margin * F.avg_pool2d(normalised.mask.float(), self.config.downsample)[:, 0]

    def _place(self, vectors: Tensor) -> Tensor:
        """Place vectors (B, n, D) of a sequence in their cells (B, h, w, D), with `absent` in the cells beyond n."""
        count, grid = vectors.shape[1], self.config.grid_size
        if count < self.config.num_codes:
            rest = self.absent.to(vectors.dtype).expand(len(vectors), 1, -1)
            vectors = torch.cat([vectors, rest], 1)  # (B, n + 1, D)
        return vectors[:, self.cell_rank.clamp(max=count)].view(-1, grid, grid, vectors.shape[-1])

    def _check_length(self, count: int) -> bool:
        """True if a sequence of that many codes can be decoded."""
        return count == self.config.num_codes or (self.config.nested and 0 < count < self.config.num_codes)

    def _lengths(self) -> str:
        total = self.config.num_codes
        if self.config.nested:
            return f"this tokenizer is nested: it reads the first 1 to {total} codes of a sequence"
        return f"this tokenizer reads exactly {total} codes a map; fewer need one trained with nested=True"

    def _check_probabilities(self, probabilities: Tensor) -> None:
        cells, size = self.config.num_codes, self.config.codebook_size
        shape = tuple(probabilities.shape)
        if len(shape) != 3 or shape[2] != size or not self._check_length(shape[1]):
            raise ValueError(
                f"probabilities must be (B, {cells}, {size}), got {shape}; take the softmax over the depth codes alone "
                f"({self._lengths()})"
            )

    def _check_codes(self, codes: Tensor) -> Tensor:
        """The codes as long, (B, h, w) or (B, n)."""
        grid, size = self.config.grid_size, self.config.codebook_size
        if not isinstance(codes, Tensor):
            raise ValueError(f"codes must be a tensor of integers, got {type(codes).__name__}; use torch.as_tensor")
        if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
            raise ValueError(f"codes must be integers, got {codes.dtype}; probabilities go to decode_soft")
        shape = tuple(codes.shape)
        if shape[1:] != (grid, grid) and not (len(shape) == 2 and self._check_length(shape[1])):
            raise ValueError(f"codes must be (B, {grid}, {grid}) or (B, {grid * grid}), got {shape}; {self._lengths()}")
        codes = codes.long()  # first: torch finds no extremes of uint16, uint32 and uint64
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < size:
            raise ValueError(f"codes must lie in 0..{size - 1}, got {int(codes.min())}..{int(codes.max())}")
        return codes

    def _finish(self, quantized: Tensor, depth_range: Tensor | None, size: tuple[int, int] | None) -> Tensor:
        nearness = self._decode_vectors(quantized).clamp(0, 1)  # (B, S, S)
        if size is not None:
            nearness = F.interpolate(nearness[:, None], size=size, mode="bilinear", antialias=True)[:, 0]  # (B, *size)
        return nearness if depth_range is None else nearness_to_depth(nearness, depth_range, self.config)

    def forward(self, depth: Tensor, mask: Tensor | None = None, visible: Tensor | None = None) -> VQVAEOutput:
        """Encode, quantise and decode depth (B, H, W); in training mode the codebook moves with the batch.

        Args:
            depth: as for `encode`.
            mask: as for `encode`. The losses are taken over these pixels.
            visible: (B, H, W), pixels that the encoder may see; by default all of `mask`. With fewer the model learns
                to fill in holes (as AiT is trained).

        Raises:
            ValueError: as `encode`.
        """
        target = self.normalise(depth, mask)
        seen = target
        if visible is not None:
            check_mask(visible, "visible")
            shown = F.interpolate(visible[:, None].float(), size=target.mask.shape[-2:]) > 0.5  # (B, 1, S, S)
            shown = shown & target.mask
            seen = Normalised(torch.where(shown, target.values, 0), shown, target.depth_range)
        z = self._vectors(seen)  # (B, h, w, D)
        # The codebook's moving averages need more digits than bfloat16 has.
        with torch.autocast(z.device.type, enabled=False):
            quantized, codes, commitment = self.quantizer(z.float().flatten(0, 2))
        quantized = quantized.view(z.shape)  # (B, h, w, D)
        if self.training and self.config.nested:
            budgets = random_budgets(len(z), self.config.num_codes, z.device)  # (B,)
            kept = (self.cell_rank < budgets[:, None]).view(*z.shape[:3], 1)
            quantized = torch.where(kept, quantized, self.absent)
        reconstruction = self._decode_vectors(quantized)  # (B, S, S)
        l1, l2, gradient = reconstruction_losses(
            reconstruction, target.nearness, target.mask[:, 0], over_ranks=self.training
        )
        total = l1 + L2_WEIGHT * l2 + GRADIENT_WEIGHT * gradient + self.config.commitment_weight * commitment
        counts = torch.bincount(codes, minlength=self.config.codebook_size)
        losses = Losses(l1, l2, gradient, commitment, total)
        return VQVAEOutput(reconstruction, codes.view(z.shape[:3]), losses, perplexity(counts))

    @torch.no_grad()
    def sort_codebook(self, depth: Tensor, mask: Tensor | None = None) -> Tensor:
        """Renumber the codes so that they rise from far to near: 0 for the farthest cells, K-1 for the nearest.

        A code is placed by the mean decoded nearness of the cells (B, h, w) it stands for in the sample `depth`
        (B, H, W); a code that is not in the sample is placed by the map made of that code only. Reconstructions
        do not change.

        Returns the order (K,): the former code `order[k]` is now code k.
        """
        size, grid, cell = self.config.codebook_size, self.config.grid_size, self.config.downsample
        uniform = torch.arange(size, device=self.codebook.device)[:, None, None].expand(size, grid, grid)
        level = torch.cat([self.decode(chunk).mean((1, 2)) for chunk in uniform.split(64)])  # (K,)
        sums, counts = torch.zeros_like(level), torch.zeros_like(level)
        for start in range(0, len(depth), 64):
            chunk = slice(start, start + 64)
            codes = self.encode(depth[chunk], None if mask is None else mask[chunk])  # (b, h, w)
            cells = F.avg_pool2d(self.decode(codes)[:, None], cell).flatten()  # (b*h*w,)
            sums.index_add_(0, codes.flatten(), cells)
            counts.index_add_(0, codes.flatten(), torch.ones_like(cells))
        level = torch.where(counts > 0, sums / counts.clamp_min(1), level)
        order = level.argsort(stable=True)
        self.quantizer.permute(order)
        return order

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | Path,
        *,
        dtype: torch.dtype | None = None,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **push_to_hub_kwargs: Any,
    ) -> str | None:
        """Write config.json and model.safetensors, each whole or not at all; return the hub's address if pushed.

        Args:
            save_directory: the folder, created if it is missing.
            dtype: e.g. torch.float16 to halve the file. Codes may then differ for vectors that lie between two codes,
                so load the saved tokenizer back before you encode data with it.
            push_to_hub: True to push to the hub as well.
            repo_id: owner/name on the hub; by default the folder's name.
            push_to_hub_kwargs: settings of `PyTorchModelHubMixin.push_to_hub`.
        """
        # The mixin's own would first delete an existing config.json, and so could leave a folder without one.
        folder = Path(save_directory)
        write_checkpoint(folder, self.config, self.state_dict(), dtype)
        return self.push_to_hub(repo_id or folder.name, **push_to_hub_kwargs) if push_to_hub else None

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
    ) -> VQVAE:
        """Load a tokenizer from a local folder or a repository of the hub, in float32 and evaluation mode.

        Raises:
            CheckpointError: for a missing, truncated or mismatched file, missing or unexpected tensors, or unknown
                config keys.
        """
        folder = Path(pretrained_model_name_or_path)
        paths = [folder / CONFIG_NAME, folder / WEIGHTS_NAME]
        if not folder.is_dir():
            if folder.exists() or folder.is_absolute() or len(folder.parts) != 2:
                raise CheckpointError(
                    f"{pretrained_model_name_or_path} is no folder and no hub repository (owner/name); give the folder "
                    f"that holds {CONFIG_NAME} and {WEIGHTS_NAME}"
                )
            paths = [
                Path(
                    hf_hub_download(
                        str(pretrained_model_name_or_path),
                        name,
                        revision=revision,
                        cache_dir=cache_dir,
                        force_download=force_download,
                        local_files_only=local_files_only,
                        token=token,
                    )
                )
                for name in (CONFIG_NAME, WEIGHTS_NAME)
            ]
        model = cls(read_config(paths[0], VQVAEConfig))
        model.load_state_dict(read_weights(paths[1], model.state_dict()), strict=True)
        return model.eval()

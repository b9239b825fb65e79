"""A diffusion decoder for depth codes, sharper than the plain decoder.

It diffuses the *residual* between a map and the plain decoder's map, at a finer resolution, conditioned on the plain
map and on the codes' vectors. One step gives about the mean of the possible maps, as the plain decoder does; more steps
settle on one of the sharp maps that fit the codes. Needs diffusers.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae.checkpoint import CONFIG_NAME, WEIGHTS_NAME, CheckpointError, read_config, read_weights, write_checkpoint
from vqvae.config import checked_config
from vqvae.model import VQVAE
from vqvae.normalisation import nearness_to_depth, normalise_depth

GROUPS = 16
"""Group size of the group norms: each width must be a multiple of it."""


@dataclass(frozen=True)
class DiffusionDecoderConfig:
    """Configuration of a `DiffusionDecoder`; saved as `config.json` beside its weights."""

    tokenizer: str
    """Fingerprint of the tokenizer whose codes it reads"""
    image_size: int = 160
    """Side of the maps that it draws, in pixels"""
    patch_size: int = 4
    """Side of the pixel blocks folded into channels: the U-Net runs at image_size / patch_size"""
    channels: tuple[int, ...] = (48, 96, 128)
    """Widths of the U-Net's levels; each level has half the resolution of the one before"""
    layers_per_block: int = 1
    residual_scale: float = 0.1
    """Standard deviation of the plain decoder's error, in nearness"""
    train_timesteps: int = 1000
    shrink: float = 0.008
    """Nearness subtracted from the size of every residual, which removes noise in flat regions (soft thresholding,
    Donoho 1995)"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(int(width) for width in self.channels))
        coarsest = self.patch_size << (len(self.channels) - 1)
        if self.patch_size < 1 or not self.channels or self.image_size < 1 or self.image_size % coarsest:
            raise ValueError(
                f"image_size ({self.image_size}) must be a multiple of {coarsest}, patch_size ({self.patch_size}) "
                f"halved {len(self.channels) - 1} times over"
            )
        if any(width < GROUPS or width % GROUPS for width in self.channels):
            raise ValueError(f"channels ({self.channels}) must be multiples of {GROUPS}")
        if min(self.layers_per_block, self.train_timesteps) < 1 or not self.residual_scale > 0:
            raise ValueError(
                f"layers_per_block ({self.layers_per_block}), train_timesteps ({self.train_timesteps}) and "
                f"residual_scale ({self.residual_scale}) must be above 0"
            )
        if not 0 <= self.shrink < 1:
            raise ValueError(f"shrink must lie in [0, 1), got {self.shrink}; 0 keeps residuals as they are")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DiffusionDecoderConfig:
        """Build a config from a dict; raises ValueError naming unknown keys and the known ones."""
        return checked_config(cls, values)


def _diffusers() -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise ImportError("the diffusion decoder needs diffusers: pip install diffusers") from error
    return diffusers


class DiffusionDecoder(nn.Module):
    """Decode one tokenizer's codes to maps by a few steps of DDIM (Song et al. 2021) from seeded noise.

    It predicts the clean residual, under a cosine schedule that ends in pure noise (Lin et al. 2024), so that few
    steps, and even one, make sense. Predicting velocities left noise in flat regions, where nearly all of a
    residual is zero. Its state holds the U-Net only; the tokenizer is saved separately.
    """

    def __init__(self, tokenizer: VQVAE, config: DiffusionDecoderConfig | None = None):
        super().__init__()
        self.config = config or DiffusionDecoderConfig(tokenizer.fingerprint())
        if self.config.tokenizer != tokenizer.fingerprint():
            raise ValueError(
                f"this diffusion decoder reads codes of tokenizer {self.config.tokenizer}, got "
                f"{tokenizer.fingerprint()}; give the one it was trained with"
            )
        diffusers = _diffusers()
        self._tokenizer = [copy.deepcopy(tokenizer).eval().requires_grad_(False)]  # in a list: none of its own state
        folded = self.config.patch_size**2
        levels = len(self.config.channels)
        self.unet = diffusers.UNet2DModel(
            sample_size=self.config.image_size // self.config.patch_size,
            in_channels=2 * folded + tokenizer.config.codebook_dim,
            out_channels=folded,
            layers_per_block=self.config.layers_per_block,
            block_out_channels=self.config.channels,
            down_block_types=("DownBlock2D",) * levels,
            up_block_types=("UpBlock2D",) * levels,
            norm_num_groups=GROUPS,
        )
        self.scheduler = diffusers.DDIMScheduler(
            num_train_timesteps=self.config.train_timesteps,
            beta_schedule="squaredcos_cap_v2",
            prediction_type="sample",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
            clip_sample=False,
        )

    @property
    def tokenizer(self) -> VQVAE:
        """The tokenizer whose codes are read: a copy, frozen."""
        return self._tokenizer[0]

    def _apply(self, fn: Any, recurse: bool = True) -> DiffusionDecoder:
        """Move the tokenizer too (`to`, `cuda`, ..)."""
        super()._apply(fn, recurse)
        self.tokenizer._apply(fn)
        return self

    def _conditions(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """The plain decoder's nearness (B, S, S) of codes, and the U-Net's conditions (B, p*p + D, S/p, S/p)."""
        size = self.config.image_size
        plain = self.tokenizer.decode(codes, size=(size, size))  # (B, S, S)
        grid = self.tokenizer.config.grid_size
        vectors = self.tokenizer.codebook[codes.view(-1, grid, grid)].permute(0, 3, 1, 2)  # (B, D, h, w)
        folded = F.pixel_unshuffle(2 * plain[:, None] - 1, self.config.patch_size)  # (B, p*p, S/p, S/p)
        return plain, torch.cat([folded, F.interpolate(vectors, size=folded.shape[2:])], 1)

    def residual(self, depth: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Training targets of maps (B, H, W).

        Returns codes (B, h, w), the truth minus the plain decoder's nearness (B, S, S), 0 in holes, and the
        mask (B, S, S). Raises ValueError for bad input, as `VQVAE.encode` does.
        """
        truth = normalise_depth(depth, mask, replace(self.tokenizer.config, image_size=self.config.image_size))
        codes = self.tokenizer.encode(depth, mask)
        plain = self.tokenizer.decode(codes, size=(self.config.image_size,) * 2)
        valid = truth.mask[:, 0]
        return codes, torch.where(valid, truth.nearness - plain, 0), valid

    def forward(self, depth: Tensor, mask: Tensor | None = None) -> Tensor:
        """The loss () of maps (B, H, W).

        It is the mean squared error of the predicted residual, in units of its scale, over valid pixels at
        random times. Late times, with much noise, are drawn more often, because few steps consist mostly of
        these.
        """
        # In float32: rounded to bfloat16, the plain map would be off by a level of 255, and that would be learnt.
        with torch.no_grad(), torch.autocast(depth.device.type, enabled=False):
            codes, residual, valid = self.residual(depth, mask)
            _, conditions = self._conditions(codes)
        p = self.config.patch_size
        target = F.pixel_unshuffle(residual[:, None] / self.config.residual_scale, p)  # (B, p*p, S/p, S/p)
        weight = F.pixel_unshuffle(valid[:, None].float(), p)
        times = (torch.rand(len(target), device=target.device).sqrt() * self.config.train_timesteps).long()  # (B,)
        noise = torch.randn_like(target)
        noisy = self.scheduler.add_noise(target, noise, times)
        predicted = self.unet(torch.cat([noisy, conditions], 1), times).sample
        return ((predicted.float() - target).square() * weight).sum() / weight.sum()

    @torch.no_grad()
    def decode(
        self,
        codes: Tensor,
        depth_range: Tensor | None = None,
        size: tuple[int, int] | None = None,
        num_steps: int = 2,
        seed: int = 0,
    ) -> Tensor:
        """Decode codes (B, h, w), or a whole sequence of them (B, h*w), to maps (B, S, S) or (B, *size).

        Args:
            depth_range: as for `VQVAE.decode`.
            size: as for `VQVAE.decode`.
            num_steps: number of DDIM steps, each a pass through the U-Net.
            seed: seed of the initial noise, which is the same for each map, so that a map does not depend on its batch.

        Raises:
            ValueError: as `VQVAE.decode`, for a truncated nested sequence, or less than one step.
        """
        if not 1 <= num_steps <= self.config.train_timesteps:
            raise ValueError(f"num_steps must lie in 1..{self.config.train_timesteps}, got {num_steps}")
        if codes.ndim == 2:
            if codes.shape[1] != self.tokenizer.config.num_codes:
                raise ValueError(
                    f"codes must be whole, {self.tokenizer.config.num_codes} a map, got {codes.shape[1]}; the plain "
                    "decoder reads the first ones of a nested tokenizer"
                )
            grid = self.tokenizer.config.grid_size
            codes = codes[:, self.tokenizer.cell_rank].view(-1, grid, grid)
        plain, conditions = self._conditions(codes)
        start = torch.randn((1, *self._folded), generator=torch.Generator().manual_seed(seed))
        current = start.to(conditions).expand(len(codes), -1, -1, -1)  # (B, p*p, S/p, S/p)
        self.scheduler.set_timesteps(num_steps)
        for time in self.scheduler.timesteps.tolist():
            predicted = self.unet(torch.cat([current, conditions], 1), time).sample
            current = self.scheduler.step(predicted.float(), time, current).prev_sample
        residual = self.config.residual_scale * F.pixel_shuffle(current, self.config.patch_size)[:, 0]  # (B, S, S)
        nearness = (plain + F.softshrink(residual, self.config.shrink)).clamp(0, 1)
        if size is not None:
            nearness = F.interpolate(nearness[:, None], size=size, mode="bilinear", antialias=True)[:, 0]  # (B, *size)
        return nearness if depth_range is None else nearness_to_depth(nearness, depth_range, self.tokenizer.config)

    @property
    def _folded(self) -> tuple[int, int, int]:
        """(p*p, S/p, S/p)"""
        side = self.config.image_size // self.config.patch_size
        return self.config.patch_size**2, side, side

    def save_pretrained(self, save_directory: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write config.json and model.safetensors, each whole or not at all. The tokenizer is not written."""
        write_checkpoint(Path(save_directory), self.config, self.state_dict(), dtype)

    @classmethod
    def from_pretrained(cls, folder: str | Path, tokenizer: VQVAE) -> DiffusionDecoder:
        """Load a decoder from a folder, in float32 and evaluation mode, for the tokenizer it was trained with.

        Raises:
            CheckpointError: for a missing, truncated or mismatched file, or codes of another tokenizer.
        """
        folder = Path(folder)
        config = read_config(folder / CONFIG_NAME, DiffusionDecoderConfig)
        try:
            model = cls(tokenizer, config)
        except ValueError as error:
            raise CheckpointError(f"{folder}: {error}") from None
        model.load_state_dict(read_weights(folder / WEIGHTS_NAME, model.state_dict()), strict=True)
        return model.eval()

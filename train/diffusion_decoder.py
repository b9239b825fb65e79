"""Trains a diffusion decoder for a depth tokenizer that is done: `python -m train.diffusion_decoder`.

    python -m train.diffusion_decoder                  # for the shipped tokenizer, half an hour on one core
    python -m train.diffusion_decoder --tokenizer TOK --data MAPS --store runs/maps-160   # on maps of your own
    python -m train.diffusion_decoder --start runs/diffusion/finished --run_dir runs/more --out runs/more/finished
    accelerate launch -m train.diffusion_decoder       # several GPUs

It learns what the plain decoder gets wrong, on the maps that `train.tokenizer` trains on, at twice the resolution. Ends
with a moving average of the weights. What to expect: `python -m benchmarks.diffusion_decoder`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from perception.datasets.depth.files import DepthFormat
from perception.model.shipped import shipped
from perception.tokenizers.depth import DepthTokenizer
from train.loop.command_line import fingerprint, parse_config
from train.loop.evaluation import Evaluation
from train.loop.fit import FitResult, LoopConfig, fit
from train.tokenizer import DepthBatches, TokenizerConfig, TrainingData
from vqvae import VQVAE
from vqvae.diffusion import DiffusionDecoder, DiffusionDecoderConfig

_SCALE_BATCHES = 4
"""Batches that the residual's scale is measured on"""
_SHOWN = 6


@dataclass(frozen=True)
class DiffusionTrainingConfig:
    """Configuration of a diffusion decoder's training."""

    tokenizer: str | None = None
    """folder or hub name; none: the shipped depth-scenes-100"""
    start: str | None = None
    """folder of a decoder of the same tokenizer and sizes to go on from; none: random weights"""
    run_dir: str = "runs/diffusion"
    out: str = "runs/diffusion/finished"
    """folder of the finished decoder, half precision"""
    data: str | None = None
    """none: rendered scenes; or depth maps, as for train.tokenizer"""
    data_format: DepthFormat = field(default_factory=DepthFormat)
    store: str = "runs/scenes/diffusion"
    """folder where the maps are kept at image_size; every set of them needs its own"""
    num_scenes: int = 12_000
    num_held_out: int = 64
    batch_size: int = 16
    image_size: int = 160
    """pixels a side of the maps that it learns to draw"""
    patch_size: int = 4
    channels: tuple[int, ...] = (32, 64, 128)
    layers_per_block: int = 1
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(
            steps=2200,
            learning_rate=8e-4,
            warmup_steps=100,
            min_lr_ratio=0.02,
            precision="bf16",
            ema_decay=0.995,
            evaluate_every=500,
        )
    )

    def __post_init__(self) -> None:
        if min(self.num_scenes, self.num_held_out, self.batch_size) < 1:
            raise ValueError(
                f"num_scenes ({self.num_scenes}), num_held_out ({self.num_held_out}) and batch_size "
                f"({self.batch_size}) must be at least 1"
            )

    def maps(self, tokenizer: VQVAE) -> TokenizerConfig:
        """The tokenizer's own recipe for data, at this decoder's size."""
        return TokenizerConfig(
            store=self.store,
            data=self.data,
            data_format=self.data_format,
            num_scenes=self.num_scenes,
            num_held_out=self.num_held_out,
            model=replace(tokenizer.config, image_size=self.image_size),
            loop=self.loop,
        )


def residual_scale(tokenizer: VQVAE, image_size: int, batches: DepthBatches) -> float:
    """Standard deviation of what the plain decoder gets wrong, over a few training batches."""
    probe = DiffusionDecoder(tokenizer, DiffusionDecoderConfig(tokenizer.fingerprint(), image_size, channels=(16,)))
    squares, count = 0.0, 0
    for step in range(_SCALE_BATCHES):
        _, residual, valid = probe.residual(**batches(step, 0, 1))
        squares, count = squares + float(residual.square().sum()), count + int(valid.sum())
    return round((squares / max(1, count)) ** 0.5, 5)


def diffusion_loss(model: nn.Module, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The decoder's loss."""
    loss: Tensor = model(**batch)
    return loss, {}


@torch.no_grad()
def evaluate(model: DiffusionDecoder, depth: Tensor) -> Evaluation:
    """The loss on held-out depth (N, S, S), at the same times and noise each time, and a picture: truth, plain decoder,
    this one."""
    device = model.tokenizer.codebook.device
    state = torch.get_rng_state()
    torch.manual_seed(0)
    losses = [float(model(chunk.to(device))) * len(chunk) for chunk in depth.split(16)]
    torch.set_rng_state(state)
    shown = depth[:_SHOWN].to(device)
    codes, residual, valid = model.residual(shown)
    size = residual.shape[1:]
    plain = model.tokenizer.decode(codes, size=(size[0], size[1]))
    truth = torch.where(valid, plain + residual, torch.nan)
    rows = [
        np.concatenate([np.asarray(DepthTokenizer.draw(one.cpu())) for one in maps], 1)
        for maps in (truth, plain, model.decode(codes))
    ]
    return Evaluation(sum(losses) / len(depth), {}, {"decoded": np.concatenate(rows)})


def _begun(config: DiffusionTrainingConfig, tokenizer: VQVAE, batches: DepthBatches) -> DiffusionDecoder:
    """The decoder that a training begins with. Raises ValueError where `start` has other sizes."""
    sizes = (config.image_size, config.patch_size, tuple(config.channels), config.layers_per_block)
    if config.start is None:
        scale = residual_scale(tokenizer, config.image_size, batches)
        return DiffusionDecoder(tokenizer, DiffusionDecoderConfig(tokenizer.fingerprint(), *sizes, scale))
    model = DiffusionDecoder.from_pretrained(config.start, tokenizer)
    found = (model.config.image_size, model.config.patch_size, model.config.channels, model.config.layers_per_block)
    if found != sizes:
        raise ValueError(
            f"the decoder in {config.start} has image_size, patch_size, channels and layers_per_block {found}, this "
            f"training asks for {sizes}; make them the same"
        )
    return model


def train(config: DiffusionTrainingConfig) -> FitResult:
    """Runs or resumes a training and writes the finished decoder to `config.out`."""
    torch.manual_seed(config.loop.seed)
    tokenizer = VQVAE.from_pretrained(config.tokenizer or shipped("depth-scenes-100"))
    data = TrainingData.open(config.maps(tokenizer))
    batches = DepthBatches(data.store, config.batch_size, config.loop.seed, data.rows)
    model = _begun(config, tokenizer, batches).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    held_out = data.watched if config.loop.evaluate_every is not None else None
    result = fit(
        model,
        batches,
        diffusion_loss,
        config.loop,
        Path(config.run_dir),
        evaluate=None if held_out is None else lambda trained: evaluate(trained, held_out),
        title="diffusion decoder",
        fingerprint=fingerprint(config, ["run_dir", "out", "store", "tokenizer"])
        | {"tokenizer": tokenizer.fingerprint()},
    )
    if result.is_main:
        model.cpu().eval().save_pretrained(config.out, dtype=torch.float16)
    return result


def main(argv: list[str] | None = None) -> None:
    config = parse_config(DiffusionTrainingConfig, argv)
    result = train(config)
    if result.is_main:
        print(f"{result.steps} steps, {result.seconds:.0f} s; diffusion decoder: {config.out}")


if __name__ == "__main__":
    main()

"""Trains a diffusion decoder for a finished depth tokenizer (`python -m train.diffusion_decoder`).

    python -m train.diffusion_decoder                  # for the shipped tokenizer, half an hour on one core
    python -m train.diffusion_decoder --tokenizer TOK --data MAPS --store runs/maps-160   # on maps of your own
    python -m train.diffusion_decoder --start runs/diffusion/finished --run_dir runs/more --out runs/more/finished
    accelerate launch -m train.diffusion_decoder       # several GPUs

It learns the residual of the plain decoder, on the maps that `train.tokenizer` trains on, at twice the resolution. The
result is a moving average of the weights. `python -m benchmarks.diffusion_decoder` measures it.
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
"""Batches to measure the scale of the residual on"""
_SHOWN = 6


@dataclass(frozen=True)
class DiffusionTrainingConfig:
    """Trains a diffusion decoder for a finished depth tokenizer."""

    tokenizer: str | None = None
    """folder or hub name of the tokenizer; none: the shipped depth-scenes-100"""
    start: str | None = None
    """folder of a decoder with the same tokenizer and sizes to continue from; none: random weights"""
    run_dir: str = "runs/diffusion"
    """folder for checkpoints and logs"""
    out: str = "runs/diffusion/finished"
    """folder of the finished decoder, in half precision"""
    data: str | None = None
    """depth maps to train on, as for train.tokenizer; none: rendered scenes"""
    data_format: DepthFormat = field(default_factory=DepthFormat)
    """meaning of the numbers in data"""
    store: str = "runs/scenes/diffusion"
    """folder that keeps the maps at image_size; each set of maps needs a folder of its own"""
    num_scenes: int = 12_000
    """number of rendered scenes to train on, if there is no data"""
    num_held_out: int = 64
    """number of held-out maps to evaluate on"""
    batch_size: int = 16
    """maps per step and device"""
    image_size: int = 160
    """side of the maps that it learns to draw, in pixels"""
    patch_size: int = 4
    """side of the patches that the U-Net works on, in pixels"""
    channels: tuple[int, ...] = (32, 64, 128)
    """channels per level of the U-Net"""
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
        """The tokenizer's recipe for data, at the size of this decoder."""
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
    """Standard deviation of the plain decoder's residual, over a few training batches."""
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
    """The loss on held-out depth (N, S, S), with the same times and noise at every evaluation, and a picture of truth,
    plain decoder and diffusion decoder."""
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
    """The decoder that training starts from. Raises ValueError if `start` has other sizes."""
    sizes = (config.image_size, config.patch_size, tuple(config.channels))
    if config.start is None:
        scale = residual_scale(tokenizer, config.image_size, batches)
        return DiffusionDecoder(
            tokenizer, DiffusionDecoderConfig(tokenizer.fingerprint(), *sizes, residual_scale=scale)
        )
    model = DiffusionDecoder.from_pretrained(config.start, tokenizer)
    found = (model.config.image_size, model.config.patch_size, model.config.channels)
    if found != sizes:
        raise ValueError(
            f"the decoder in {config.start} has image_size, patch_size and channels {found}, and this training asks "
            f"for {sizes}; make them the same"
        )
    return model


def train(config: DiffusionTrainingConfig) -> FitResult:
    """Runs or resumes a training and writes the finished decoder to `config.out`."""
    torch.manual_seed(config.loop.seed)
    tokenizer = VQVAE.from_pretrained(config.tokenizer or shipped("depth-scenes-100"))
    data = TrainingData.open(config.maps(tokenizer))
    metric = tokenizer.config.normalisation == "metric"
    batches = DepthBatches(data.store, config.batch_size, config.loop.seed, data.rows, metric=metric)
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

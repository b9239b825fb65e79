"""A vision tower for photographs: an ImageNet backbone whose features of strides 4 to 32 are gathered into cells.

A classifier's last features have lost small print, such as the letter beside a marked point; its first features know no
objects. A small neck carries the fine ones down to the coarse grid, so that a few visual tokens hold both. The backbone
is timm's and frozen, so its batch norms are folded into its convolutions; the neck is what trains. transformers' Auto
classes know the tower once `register` has run, which `perception.model.folder.read_model` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

STRIDES = (4, 8, 16, 32)


class CellTowerConfig(PretrainedConfig):
    """Sizes of a tower.

    Args:
        backbone: name of a convolutional network of timm with features of strides 4, 8, 16 and 32.
        image_size: side of the square images, in pixels; a cell covers 32 x 32 of them.
        widths: channels of the neck at strides 8, 16 and 32; the last is the size of a visual token.
    """

    model_type = "perception_cell_tower"

    def __init__(
        self,
        backbone: str = "tf_efficientnet_lite2",
        image_size: int = 320,
        widths: tuple[int, int, int] = (64, 128, 256),
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if image_size < STRIDES[-1] or image_size % STRIDES[-1]:
            raise ValueError(f"image_size must be a multiple of {STRIDES[-1]}, the side of a cell, got {image_size}")
        self.backbone = backbone
        self.image_size = image_size
        self.widths = list(widths)
        self.hidden_size = self.widths[-1]


def features(backbone: str) -> Any:
    """Return an untrained network of timm that gives its features of strides 4 to 32."""
    import timm

    return timm.create_model(backbone, features_only=True, out_indices=(1, 2, 3, 4), pretrained=False)


@torch.no_grad()
def without_batch_norms(network: nn.Module) -> nn.Module:
    """Fold the batch norms of a network of timm into the convolutions before them, in place; it is not trained again.

    On a CPU it then takes about half the time. Raises ValueError where a batch norm does not follow its convolution.
    """
    from timm.layers import BatchNormAct2d

    for parent in list(network.modules()):
        convolution: nn.Conv2d | None = None
        for name, child in list(parent.named_children()):
            if isinstance(child, BatchNormAct2d):
                if convolution is None or convolution.out_channels != child.num_features:
                    raise ValueError(f"{type(parent).__name__}.{name} follows no convolution of its size")
                assert child.running_mean is not None and child.running_var is not None
                scale = child.weight / (child.running_var + child.eps).sqrt()
                convolution.weight.mul_(scale[:, None, None, None])
                convolution.bias = nn.Parameter(child.bias - child.running_mean * scale)
                setattr(parent, name, child.act)
            if not isinstance(child, nn.Identity):
                convolution = child if isinstance(child, nn.Conv2d) else None
    return network.requires_grad_(False)


class _NeckBlock(nn.Module):
    """Residual block at one stride."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.gelu(self.first(self.norm(x))))


class _Level(nn.Module):
    """Halves the features of the level above and joins them with the backbone's of its own stride."""

    def __init__(self, above: int, own: int, width: int, depth: int):
        super().__init__()
        self.down = nn.Conv2d(above, width, 3, stride=2, padding=1)
        self.own = nn.Conv2d(own, width, 1)
        self.blocks = nn.Sequential(*(_NeckBlock(width) for _ in range(depth)))

    def forward(self, above: Tensor, own: Tensor) -> Tensor:
        return self.blocks(self.down(above) + self.own(own))


class CellTower(PreTrainedModel):
    """Turns images (B, 3, S, S) in [-1, 1] into (B, (S / 32)^2, D) tokens, one per cell, row by row.

    Tokens (B, N, D) that it made before pass through: a language model behind a frozen tower trains on stored ones.
    """

    config_class = CellTowerConfig
    base_model_prefix = "cell_tower"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    frozen_parts = ("backbone",)
    """Parts that training leaves alone: without its batch norms, the backbone does not train well"""

    def __init__(self, config: CellTowerConfig):
        super().__init__(config)
        made = features(config.backbone)
        if tuple(made.feature_info.reduction()) != STRIDES:
            raise ValueError(f"{config.backbone} has strides {made.feature_info.reduction()}, expected {STRIDES}")
        channels = made.feature_info.channels()
        self.backbone = without_batch_norms(made)
        widths = [channels[0], *config.widths]
        self.norms = nn.ModuleList(nn.GroupNorm(1, count) for count in channels)
        self.levels = nn.ModuleList(
            _Level(above, own, width, depth)
            for above, own, width, depth in zip(widths, channels[1:], config.widths, (1, 1, 3), strict=False)
        )
        side = config.image_size // STRIDES[-1]
        self.places = nn.Parameter(torch.randn(1, config.hidden_size, side, side) * 0.02)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Leave the weights as their modules made them; the backbone's are loaded."""

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        tokens = pixel_values
        if pixel_values.dim() == 4:
            tokens = self.gather(self.backbone(pixel_values.contiguous(memory_format=torch.channels_last)))
        # LLaVA replaces pooled features by its own, which are part of the output only if it has some
        return BaseModelOutputWithPooling(tokens, tokens.mean(1), hidden_states=(tokens,))

    def gather(self, features: Sequence[Tensor]) -> Tensor:
        """Turn the backbone's features, (B, C, S / stride, S / stride) of each stride, into tokens (B, N, D)."""
        x, *others = (norm(part) for norm, part in zip(self.norms, features, strict=True))
        for level, own in zip(self.levels, others, strict=True):
            x = level(x, own)
        return (x + self.places).flatten(2).transpose(1, 2)


def register() -> None:
    """Make the tower known to transformers' Auto classes."""
    AutoConfig.register(CellTowerConfig.model_type, CellTowerConfig, exist_ok=True)
    AutoModel.register(CellTowerConfig, CellTower, exist_ok=True)

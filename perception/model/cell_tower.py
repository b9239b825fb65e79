"""A vision tower for photographs: an ImageNet backbone whose features of strides 4 to 32 are gathered into cells.

A classifier's last features have lost small print, such as the letter beside a marked point; its first features know no
objects. A small neck carries the fine ones down to the coarse grid, so that a few visual tokens hold both. The backbone
is timm's, frozen with its batch norms; the neck is what trains. transformers' Auto classes know the tower once
`register` has run, which `perception.model.folder.read_model` does.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

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


class _Block(nn.Module):
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
        self.blocks = nn.Sequential(*(_Block(width) for _ in range(depth)))

    def forward(self, above: Tensor, own: Tensor) -> Tensor:
        return self.blocks(self.down(above) + self.own(own))


class CellTower(PreTrainedModel):
    """Turns images (B, 3, S, S) in [-1, 1] into (B, (S / 32)^2, D) tokens, one per cell, row by row."""

    config_class = CellTowerConfig
    base_model_prefix = "cell_tower"
    main_input_name = "pixel_values"
    input_modalities = ("image",)

    def __init__(self, config: CellTowerConfig):
        super().__init__(config)
        import timm
        from timm.layers import freeze_batch_norm_2d

        made = timm.create_model(config.backbone, features_only=True, out_indices=(1, 2, 3, 4), pretrained=False)
        if tuple(made.feature_info.reduction()) != STRIDES:
            raise ValueError(f"{config.backbone} has strides {made.feature_info.reduction()}, expected {STRIDES}")
        channels = made.feature_info.channels()
        self.backbone = freeze_batch_norm_2d(made).requires_grad_(False)
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

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutput:
        features = self.backbone(pixel_values.contiguous(memory_format=torch.channels_last))
        first, *others = (norm(x) for norm, x in zip(self.norms, features, strict=True))
        x = first
        for level, own in zip(self.levels, others, strict=True):
            x = level(x, own)
        tokens = (x + self.places).flatten(2).transpose(1, 2)  # (B, N, D)
        return BaseModelOutput(last_hidden_state=tokens, hidden_states=(tokens,))


def register() -> None:
    """Make the tower known to transformers' Auto classes."""
    AutoConfig.register(CellTowerConfig.model_type, CellTowerConfig, exist_ok=True)
    AutoModel.register(CellTowerConfig, CellTower, exist_ok=True)

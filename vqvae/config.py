"""Configuration of a tokenizer: sizes, codebook, and normalisation of depth, which together fix what codes mean."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

from vqvae.nesting import coarse_to_fine

QUANTIZERS = ("ema", "fsq")
NETWORKS = ("wide", "convolutional", "vqmodel", "transformer")
_PUBLISHED = ("network", "value_range", "vqmodel")
NORMALISATIONS = ("relative_inverse", "relative", "metric")


@dataclass(frozen=True)
class VQVAEConfig:
    """Configuration of a `VQVAE`; saved as `config.json` beside its weights.

    It includes the normalisation, because codes of two tokenizers that normalise differently do not mean the same.
    """

    image_size: int = 80
    """Maps are resized to image_size x image_size before they are encoded."""
    downsample: int = 8
    """Side, in pixels, of the cell that one code stands for; a power of two of at least 4."""
    codebook_size: int = 128
    codebook_dim: int = 16
    """Width of the quantised vectors. With "fsq" it must be the number of levels."""
    channels: int = 128
    """Channels at the code grid. Each finer stage has half as many, at least 32."""
    num_res_blocks: int = 4
    """Wide (7x7) residual blocks of the decoder at the code grid. The encoder has one narrow (3x3) block, so that a
    code describes its own cell and the decoder combines them."""
    quantizer: str = "ema"
    """"ema": a codebook of moving averages. "fsq": a fixed lattice (finite scalar quantisation)."""
    fsq_levels: tuple[int, ...] = ()
    """Levels of each dimension with "fsq"; their product must be codebook_size."""
    decay: float = 0.99
    """Decay of the moving averages of "ema"."""
    dead_threshold: float = 0.02
    """A code used less than this fraction of its fair share (batch tokens / codebook_size) is revived. Above 0, else
    the averages of a code that is never used would end as 0 / 0."""
    commitment_weight: float = 0.25
    normalisation: str = "relative_inverse"
    """ "relative_inverse": inverse depth, min-max per map (what AURORA uses). "relative": depth, min-max per map.
    "metric": depth between min_depth and max_depth, the same for every map. All yield nearness: 1 = nearest."""
    min_depth: float | None = None
    """Only with "metric", in the unit of the input depth."""
    max_depth: float | None = None
    range_percentile: float | None = None
    """Percentile of a map's depth at nearness 1; 100 minus it is the one at nearness 0. 0: the nearest and the farthest
    pixel (min-max). None: min-max without wild pixels (`vqvae.normalisation.depth_ranges`). Not with "metric"."""
    fill_holes: bool = True
    """If true, the encoder sees holes filled in from their surroundings (`vqvae.holes`); if false, it sees zeros and a
    mask. No loss is taken in holes either way."""
    nested: bool = False
    """Train so that the first n codes of a map, in the order of `cell_order`, can be decoded, for every n."""
    network: str = "wide"
    """"wide": our encoder and decoder. The others are for published weights (`vqvae.published`): "convolutional" for
    AURORA's, AiT's and MolmoAct's, "vqmodel" for diffusers' VQModel, "transformer" for the encoder of 4M's, which has
    `channels` per patch and `num_res_blocks` layers."""
    value_range: tuple[float, ...] = (-1.0, 1.0)
    """Input of the encoder and output of the decoder at nearness 0 and at nearness 1, of published weights."""
    vqmodel: dict[str, Any] = field(default_factory=dict, hash=False)
    """Config of the VQModel. Only with "vqmodel"."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "fsq_levels", tuple(int(n) for n in self.fsq_levels))
        for name in ("image_size", "downsample", "codebook_size", "codebook_dim", "channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.downsample < 4 or self.downsample & (self.downsample - 1):
            raise ValueError(f"downsample must be a power of two of at least 4, got {self.downsample}")
        if self.image_size % self.downsample:
            raise ValueError(f"image_size ({self.image_size}) must be a multiple of downsample ({self.downsample})")
        if self.num_res_blocks < 0:
            raise ValueError(f"num_res_blocks must not be negative, got {self.num_res_blocks}")
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {self.decay}")
        self._check_quantizer()
        self._check_normalisation()
        self._check_network()

    def _check_network(self) -> None:
        object.__setattr__(self, "value_range", tuple(float(value) for value in self.value_range))
        if self.network not in NETWORKS:
            raise ValueError(f"unknown network {self.network!r}; known: {', '.join(NETWORKS)}")
        if len(self.value_range) != 2 or self.value_range[0] == self.value_range[1]:
            raise ValueError(f"value_range must be two different numbers, got {self.value_range}")
        if self.network == "wide" and (self.value_range != (-1, 1) or self.vqmodel):
            raise ValueError('value_range and vqmodel go with published networks, not with network="wide"')
        if self.network != "wide" and (self.nested or self.quantizer != "ema"):
            raise ValueError(f'network {self.network!r} has a plain codebook: nested must be false, quantizer "ema"')

    def _check_quantizer(self) -> None:
        if self.quantizer not in QUANTIZERS:
            raise ValueError(f"unknown quantizer {self.quantizer!r}; known: {', '.join(QUANTIZERS)}")
        if self.quantizer == "ema" and not 0 < self.dead_threshold < 1:
            raise ValueError(
                f"dead_threshold must lie between 0 and 1, got {self.dead_threshold}: a code that is never revived "
                f"divides 0 by 0 once its averages have decayed (decay {self.decay}); use a small one, such as 0.001"
            )
        if self.quantizer == "ema" and self.fsq_levels:
            raise ValueError(f'fsq_levels ({self.fsq_levels}) go with quantizer="fsq"; leave them empty with "ema"')
        if self.quantizer == "fsq":
            if math.prod(self.fsq_levels) != self.codebook_size or min(self.fsq_levels, default=0) < 2:
                raise ValueError(
                    f"fsq_levels ({self.fsq_levels}) must each be at least 2 and multiply to codebook_size "
                    f"({self.codebook_size})"
                )
            if len(self.fsq_levels) != self.codebook_dim:
                raise ValueError(
                    f"codebook_dim ({self.codebook_dim}) must be the number of fsq_levels ({len(self.fsq_levels)})"
                )

    def _check_normalisation(self) -> None:
        if self.range_percentile is not None:
            if self.normalisation == "metric":
                raise ValueError(
                    f"range_percentile ({self.range_percentile}) goes with ranges per map, not with "
                    'normalisation="metric"'
                )
            if not 0 <= self.range_percentile < 50:
                raise ValueError(f"range_percentile must lie in [0, 50), got {self.range_percentile}")
        if self.normalisation not in NORMALISATIONS:
            raise ValueError(f"unknown normalisation {self.normalisation!r}; known: {', '.join(NORMALISATIONS)}")
        given = (self.min_depth, self.max_depth)
        if self.normalisation != "metric":
            if given != (None, None):
                raise ValueError(
                    f'min_depth and max_depth ({given}) go with normalisation="metric", not {self.normalisation!r}'
                )
        elif self.min_depth is None or self.max_depth is None or not 0 <= self.min_depth < self.max_depth:
            raise ValueError(f'normalisation="metric" needs 0 <= min_depth < max_depth, got {given}')

    @property
    def grid_size(self) -> int:
        """Codes per side."""
        return self.image_size // self.downsample

    @property
    def decodes(self) -> bool:
        """False for a tokenizer that has an encoder alone."""
        return self.network != "transformer"

    @property
    def num_codes(self) -> int:
        """Codes per map."""
        return self.grid_size**2

    @property
    def cell_order(self) -> tuple[int, ...]:
        """Row-major numbers of the cells, in the order in which a map's codes form a sequence (B, h*w).

        The order is row by row, or coarse to fine for nested codes (`vqvae.nesting.coarse_to_fine`).
        """
        return coarse_to_fine(self.grid_size) if self.nested else tuple(range(self.num_codes))

    @property
    def settings(self) -> dict[str, Any]:
        """All values by name, without those of published networks where the network is ours."""
        ours = self.network == "wide"
        return {name: value for name, value in asdict(self).items() if not (ours and name in _PUBLISHED)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> VQVAEConfig:
        """Build a config from a dict; raises ValueError naming unknown keys and the known ones."""
        return checked_config(cls, values)


Config = TypeVar("Config")


def checked_config(config_class: type[Config], values: dict[str, Any]) -> Config:
    """Build a config from JSON values; raises ValueError for unknown keys and for values of another type."""
    known = fields(config_class)  # type: ignore[arg-type]
    names = [each.name for each in known]
    unknown = sorted(set(values) - set(names))
    if unknown:
        raise ValueError(
            f"unknown config keys {unknown}; known keys: {names}. Where a newer version wrote them, update this one"
        )
    for each in known:
        if each.name in values:
            _check_type(each.name, values[each.name], str(each.type))
    return config_class(**values)


def _check_type(name: str, value: Any, kind: str) -> None:
    """Raise ValueError if a value read from JSON does not have the field's type."""
    if value is None and kind.endswith("| None"):
        return
    wanted: tuple[type, ...] = (int, float)
    for word, types in (
        ("int", (int,)),
        ("str", (str,)),
        ("bool", (bool,)),
        ("tuple", (list, tuple)),
        ("dict", (dict,)),
    ):
        if kind.startswith(word):
            wanted = types
    if not isinstance(value, wanted) or (isinstance(value, bool) and kind != "bool"):
        raise ValueError(f"{name} must be of type {kind}, got {value!r}")

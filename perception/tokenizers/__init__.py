"""Tokenizers, one file per modality, with one interface: encode, decode, to_text, from_text, draw."""

from perception.tokenizers.boxes import BoxTokenizer
from perception.tokenizers.depth import DepthTokenizer
from perception.tokenizers.masks import MaskTokenizer
from perception.tokenizers.points import PointTokenizer

TOKENIZERS = {"depth": DepthTokenizer, "boxes": BoxTokenizer, "points": PointTokenizer, "masks": MaskTokenizer}

__all__ = ["TOKENIZERS", "BoxTokenizer", "DepthTokenizer", "MaskTokenizer", "PointTokenizer"]

"""A vector-quantised autoencoder of depth maps: depth in, a small grid of integer codes out, and back.

    from vqvae import VQVAE

    model = VQVAE.from_pretrained("tokenizers/depth-scenes-100")
    codes = model.encode(depth)                  # (B, H, W) -> (B, 10, 10), integers 0..127, far to near
    nearness = model.decode(codes, size=(H, W))  # (B, H, W) in [0, 1], 1 = nearest

Stands alone: needs torch, safetensors and huggingface-hub, and knows nothing of language models.
"""

from vqvae.checkpoint import CheckpointError
from vqvae.config import VQVAEConfig
from vqvae.losses import Losses
from vqvae.model import VQVAE, VQVAEOutput
from vqvae.normalisation import Normalised

__all__ = ["VQVAE", "CheckpointError", "Losses", "Normalised", "VQVAEConfig", "VQVAEOutput"]

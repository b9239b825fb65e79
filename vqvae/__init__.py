"""A vector-quantised autoencoder for depth maps: depth in, a small grid of integer codes out, and back.

    from vqvae import VQVAE

    model = VQVAE.from_pretrained("tokenizers/depth-scenes-100")

It needs torch, safetensors and huggingface-hub, and knows nothing of language models.
"""

from vqvae.checkpoint import CheckpointError
from vqvae.config import VQVAEConfig
from vqvae.losses import Losses
from vqvae.model import VQVAE, VQVAEOutput
from vqvae.normalisation import Normalised

__all__ = ["VQVAE", "CheckpointError", "Losses", "Normalised", "VQVAEConfig", "VQVAEOutput"]

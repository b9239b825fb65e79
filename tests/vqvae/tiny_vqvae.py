"""A tokenizer's config small enough for any machine."""

from vqvae import VQVAEConfig

TINY = VQVAEConfig(image_size=16, downsample=4, codebook_size=16, codebook_dim=4, channels=32, num_res_blocks=1)

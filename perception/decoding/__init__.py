"""Fast decoding of spans: several tokens per forward pass, the same ids as one at a time up to near-ties."""

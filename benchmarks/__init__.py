"""One script per claim. Each measures from shipped weights and writes `benchmarks/results/<name>.json`."""

"""Many models quantized by one command: `fleet.yaml` in, a result for each model and one page about all out."""

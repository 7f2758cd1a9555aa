"""The device tier: embeddings and the first layers, beside the data."""

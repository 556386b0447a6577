"""Batches of patch features, held or streamed, and the protocol of the models that score them."""

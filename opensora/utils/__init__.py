"""Ground floor: configs, logging, weights, randomness. Nothing here imports the rest of `opensora`."""

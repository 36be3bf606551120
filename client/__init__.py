"""The device: it decides by itself, trains on its own examples, and uploads a clipped update."""

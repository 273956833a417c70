"""A run's account of itself: progress, manifest, card, provenance."""

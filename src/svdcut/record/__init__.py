"""What a run says of itself: progress, manifest, card, provenance."""

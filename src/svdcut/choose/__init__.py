"""What to keep of an update: options, rank rules, the noise edge, the cut."""

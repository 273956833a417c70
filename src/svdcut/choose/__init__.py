"""Choose the triplets to keep: options, rank rules, the noise edge, the cut."""

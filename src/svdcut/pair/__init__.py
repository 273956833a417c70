"""What belongs to what: names matched, shapes checked, the whole result planned."""

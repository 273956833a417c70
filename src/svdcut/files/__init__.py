"""Checkpoints on disk and on the Hub: names, headers and bytes, and the JSON of strangers."""

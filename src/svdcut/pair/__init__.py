"""Pair the tensors of two checkpoints: match names, check shapes, plan the result."""

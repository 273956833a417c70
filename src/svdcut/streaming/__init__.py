"""Tensors of two checkpoints as matrices, read block by block in bounded memory."""

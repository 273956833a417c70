"""The spectra of a checkpoint: singular values of its weights, or of its update.

It writes no checkpoint and chooses no rank.
"""

"""Truncated SVD of one matrix; see `svdcut.svd.engine`.

It knows nothing of tensors' names or files. Importing this package imports no torch.
"""

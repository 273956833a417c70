"""Truncate a whole checkpoint, tensor by tensor."""

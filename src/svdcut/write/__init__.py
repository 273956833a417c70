"""A result that appears complete or not at all: journal, planned offsets, one rename."""

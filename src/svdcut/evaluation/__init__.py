"""Classifiers by group: examples with their groups, and accuracies of each.

It changes no checkpoint.
"""

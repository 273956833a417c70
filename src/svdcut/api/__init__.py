"""The commands as Python functions: options by name, results as data.

Nothing here prints. `svdcut` itself offers the functions and the options of each.
"""

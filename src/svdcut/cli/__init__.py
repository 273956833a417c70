"""The command line: arguments in, screens and exit codes out.

Thin by intent: every command is a call of the Python API.
"""

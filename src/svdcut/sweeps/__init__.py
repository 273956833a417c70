"""Many ranks of one update, each evaluated: which one to use, and what it costs.

One decomposition of each matrix serves all ranks. It writes no checkpoint of its own.
"""

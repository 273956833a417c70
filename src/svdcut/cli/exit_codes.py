"""The one table of exit codes; the manual pages and the command reference are made from it.

It does not decide which error ends with which code: `svdcut.errors` does.
"""

EXIT_CODES: dict[int, str] = {
    0: "Done.",
    1: "Unexpected failure.",
    2: "Wrong usage.",
    3: "The inputs cannot be used, or do not match.",
    4: "Verification failed, or the asked-for quality was not reached.",
    129: "The terminal or the connection was closed (SIGHUP); as for 130.",
    130: "Interrupted by SIGINT. Finished tensors are kept; the same command goes on.",
    143: "Interrupted by SIGTERM, likewise.",
}

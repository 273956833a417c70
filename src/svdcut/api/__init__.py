"""The Python API: options by the names of the command line, results as data.

Nothing here prints. It parses and checks; the work is done by `truncation`, `spectra`,
`evaluation`, `sweeps` and `verification`.
"""

from __future__ import annotations

import lazy_loader

# Names and their modules are in __init__.pyi. Each is imported at its first use.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

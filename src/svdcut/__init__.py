"""Cut the tail of the singular value decomposition of a fine-tuning update."""

from __future__ import annotations

import lazy_loader

__version__ = "0.1.0"

# Other names and their modules are in __init__.pyi. Each is imported at its first use: a command
# waits only for what it needs.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]

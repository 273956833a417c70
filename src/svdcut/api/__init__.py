"""The Python API: options by the names of the command line, results as data.

Nothing here prints. It parses and checks; the work is done by `truncation`, `spectra` and
`verification`.
"""

from svdcut.api.spectra import (
    ComparisonRequest,
    SpectraRequest,
    SpectrumOptions,
    compare_spectra,
    measure_comparison,
    measure_spectra,
    prepare_comparison,
    prepare_spectra,
    spectrum,
)
from svdcut.api.truncation import (
    ExtractOptions,
    Request,
    TruncateOptions,
    carry_out,
    extract,
    prepare,
    resolve_options,
    truncate,
    truncate_many,
)
from svdcut.api.verification import verify

__all__ = [
    "ComparisonRequest",
    "ExtractOptions",
    "Request",
    "SpectraRequest",
    "SpectrumOptions",
    "TruncateOptions",
    "carry_out",
    "compare_spectra",
    "extract",
    "measure_comparison",
    "measure_spectra",
    "prepare",
    "prepare_comparison",
    "prepare_spectra",
    "resolve_options",
    "spectrum",
    "truncate",
    "truncate_many",
    "verify",
]

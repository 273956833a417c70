"""The Python API: options by the names of the command line, results as data.

Nothing here prints. It parses and checks; the work is done by `truncation`, `spectra`,
`evaluation` and `verification`.
"""

from svdcut.api.evaluation import (
    EvaluateOptions,
    EvaluationRequest,
    carry_out_evaluation,
    evaluate,
    prepare_evaluation,
)
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
    "EvaluateOptions",
    "EvaluationRequest",
    "ExtractOptions",
    "Request",
    "SpectraRequest",
    "SpectrumOptions",
    "TruncateOptions",
    "carry_out",
    "carry_out_evaluation",
    "compare_spectra",
    "evaluate",
    "extract",
    "measure_comparison",
    "measure_spectra",
    "prepare",
    "prepare_comparison",
    "prepare_evaluation",
    "prepare_spectra",
    "resolve_options",
    "spectrum",
    "truncate",
    "truncate_many",
    "verify",
]

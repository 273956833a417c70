"""The Python API: options by the names of the command line, results as data.

Nothing here prints. It parses and checks; the work is done by `truncation`, `spectra`,
`evaluation`, `sweeps` and `verification`.
"""

from svdcut.api.evaluation import (
    DataOptions,
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
from svdcut.api.sweeps import (
    SweepOptions,
    SweepRequest,
    carry_out_sweep,
    count_rows,
    prepare_sweep,
    sweep,
)
from svdcut.api.truncation import (
    CutOptions,
    ExtractOptions,
    Request,
    ShapeOptions,
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
    "CutOptions",
    "DataOptions",
    "EvaluateOptions",
    "EvaluationRequest",
    "ExtractOptions",
    "Request",
    "ShapeOptions",
    "SpectraRequest",
    "SpectrumOptions",
    "SweepOptions",
    "SweepRequest",
    "TruncateOptions",
    "carry_out",
    "carry_out_evaluation",
    "carry_out_sweep",
    "compare_spectra",
    "count_rows",
    "evaluate",
    "extract",
    "measure_comparison",
    "measure_spectra",
    "prepare",
    "prepare_comparison",
    "prepare_evaluation",
    "prepare_spectra",
    "prepare_sweep",
    "resolve_options",
    "spectrum",
    "sweep",
    "truncate",
    "truncate_many",
    "verify",
]

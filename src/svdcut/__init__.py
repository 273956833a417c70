"""Cut the tail of the singular value decomposition of a fine-tuning update."""

from __future__ import annotations

from svdcut._version import __version__
from svdcut.api import (
    EvaluateOptions,
    ExtractOptions,
    SpectrumOptions,
    TruncateOptions,
    compare_spectra,
    evaluate,
    extract,
    spectrum,
    truncate,
    truncate_many,
    verify,
)
from svdcut.errors import (
    CheckpointError,
    DataError,
    EvaluationError,
    HubError,
    InputError,
    Interrupted,
    MismatchError,
    NonFiniteError,
    NothingKeptError,
    OutputError,
    OutputExistsError,
    QualityError,
    QuantizedError,
    SvdcutError,
    UnholdableError,
    UsageError,
)
from svdcut.evaluation.metrics import Evaluation, Gap, GroupResult, Interval
from svdcut.manifest import Manifest
from svdcut.spectra.comparison import Comparison, Overlap
from svdcut.spectra.facts import Intruders, Spectra, Spectrum, Subject, TensorSpectra
from svdcut.verification.findings import Checked, Failure, Verification

__all__ = [
    "Checked",
    "CheckpointError",
    "Comparison",
    "DataError",
    "EvaluateOptions",
    "Evaluation",
    "EvaluationError",
    "ExtractOptions",
    "Failure",
    "Gap",
    "GroupResult",
    "HubError",
    "InputError",
    "Interrupted",
    "Interval",
    "Intruders",
    "Manifest",
    "MismatchError",
    "NonFiniteError",
    "NothingKeptError",
    "OutputError",
    "OutputExistsError",
    "Overlap",
    "QualityError",
    "QuantizedError",
    "Spectra",
    "Spectrum",
    "SpectrumOptions",
    "Subject",
    "SvdcutError",
    "TensorSpectra",
    "TruncateOptions",
    "UnholdableError",
    "UsageError",
    "Verification",
    "__version__",
    "compare_spectra",
    "evaluate",
    "extract",
    "spectrum",
    "truncate",
    "truncate_many",
    "verify",
]

from .api.evaluation import evaluate
from .api.spectra import compare_spectra, spectrum
from .api.sweeps import sweep
from .api.truncation import extract, truncate, truncate_many
from .api.verification import verify
from .errors import (
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
from .evaluation.metrics import Evaluation, Gap, GroupResult, Interval
from .evaluation.options import EvaluateOptions
from .record.manifest import Manifest
from .record.progress import Progress
from .spectra.comparison import Comparison, Overlap
from .spectra.facts import Spectra, Subject, TensorSpectra
from .spectra.matrix import Intruders, Spectrum
from .spectra.options import CompareOptions, SpectrumOptions
from .sweeps.options import SweepOptions
from .sweeps.result import Row, Sweep, Variant
from .truncation.options import ExtractOptions, TruncateManyOptions, TruncateOptions
from .verification.findings import Checked, Failure, Verification
from .verification.options import VerifyOptions

__version__: str

__all__ = [
    "Checked",
    "CheckpointError",
    "CompareOptions",
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
    "Progress",
    "QualityError",
    "QuantizedError",
    "Row",
    "Spectra",
    "Spectrum",
    "SpectrumOptions",
    "Subject",
    "SvdcutError",
    "Sweep",
    "SweepOptions",
    "TensorSpectra",
    "TruncateManyOptions",
    "TruncateOptions",
    "UnholdableError",
    "UsageError",
    "Variant",
    "Verification",
    "VerifyOptions",
    "__version__",
    "compare_spectra",
    "evaluate",
    "extract",
    "spectrum",
    "sweep",
    "truncate",
    "truncate_many",
    "verify",
]

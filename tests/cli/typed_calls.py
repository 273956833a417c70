"""Calls that mypy must accept, and others that it must reject.

mypy checks this file (pyproject.toml), and an error that it no longer finds is one to it: an
unused ``type: ignore``. Nothing runs it.
"""

from __future__ import annotations

from pathlib import Path

import svdcut

manifest: svdcut.Manifest = svdcut.truncate("base", Path("ft"), "out", rank=4, keep="bottom")
svdcut.truncate("base", "ft", "out", rank="energy=0.9", skip="*embed*", map={"a.": "b."})
svdcut.truncate("base", "ft", "out", rank=4, devise="cpu")  # type: ignore[call-arg]
svdcut.truncate("base", "ft", "out", rank=4, drop="*")  # type: ignore[call-arg]
svdcut.truncate("base", "ft", "out", rank=4, force="yes")  # type: ignore[arg-type]
svdcut.truncate("base", "ft", "out")  # type: ignore[call-arg]

manifests: list[svdcut.Manifest] = svdcut.truncate_many("base", "ft", {8: "a", 16: "b"})
svdcut.truncate_many("base", "ft", {8: "a"}, rank=4)  # type: ignore[call-arg]

svdcut.extract("base", "ft", "out", rank=4, drop=["*norm*"], observe=None)
svdcut.extract("base", "ft", "out", rank=4, max_shard_size="5GB")  # type: ignore[call-arg]

spectra: svdcut.Spectra = svdcut.spectrum("ft", top=4)
svdcut.spectrum("base", "ft", rank=4)  # type: ignore[call-arg]
svdcut.spectrum("base", "ft", top="4")  # type: ignore[arg-type]

comparison: svdcut.Comparison = svdcut.compare_spectra("base", "ft", "other", rank=4)
svdcut.compare_spectra("base", "ft")  # type: ignore[call-arg]

evaluation: svdcut.Evaluation = svdcut.evaluate("ft", "test.csv", group=["label"], limit=None)
svdcut.evaluate("ft", "test.csv", groups=["label"])  # type: ignore[call-arg]

found: svdcut.Sweep = svdcut.sweep("base", "ft", None, "out", evaluate=lambda model: 0.5)
svdcut.sweep("base", "ft", "test.csv", "out", keep="top")  # type: ignore[call-arg]

outcome: svdcut.Verification = svdcut.verify("out", base="base", finetuned="ft")
svdcut.verify("out", ft="ft")  # type: ignore[call-arg]

options = svdcut.TruncateOptions("base", "ft", "out", rank=4, keep="top")
kept: str = options.keep.value  # read, it is a member of the enumeration

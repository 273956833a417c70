"""Measure how soon a truncated fine-tune answers as the full one does, on a real classifier.

Runs `svdcut truncate` on the pair of `real_pair.py`, by rank and with the two controls, and
compares the results on reactions held out from training. Writes OUT.json and OUT.png.

    python scripts/agreement.py demo --out docs/agreement
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from torch import Tensor

REACTIONS = Path(__file__).parent / "data" / "reactions.txt"
RANKS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256)  # no matrix of this model has more than 256
SEEDS = (0, 1, 2)
BATCH_SIZE = 25

# Okabe and Ito's palette: told apart under every common colour blindness.
COLOURS = {"top": "#0072B2", "random": "#D55E00", "bottom": "#009E73"}
INK, FAINT = "#24292F", "#D8DEE4"


@dataclass(frozen=True)
class Run:
    """One call of `svdcut truncate`."""

    keep: str
    ranks: tuple[int, ...]
    seed: int | None = None


# Rank 0 keeps nothing and rank 256 everything, whatever `--keep` says: measured once.
RUNS = (
    Run("top", RANKS),
    Run("bottom", RANKS[1:-1]),
    *(Run("random", RANKS[1:-1], seed) for seed in SEEDS),
)


@dataclass(frozen=True)
class Score:
    """What a model answers on all reactions, against the fine-tuned model and the labels."""

    agreement: float
    "Share of reactions to which both models give the same class."
    kl: float
    "Mean of KL(fine-tuned || this model), in nats."
    accuracy: float
    "Share of reactions given the class on record."


class Judge:
    """Scores checkpoints against the fine-tuned model, on reactions that it never changes.

    Parameters
    ----------
    finetuned : Path
        The reference; its tokenizer serves all.
    reactions : list of (str, str)
        Reaction SMILES and class name.
    """

    def __init__(self, finetuned: Path, reactions: Sequence[tuple[str, str]]) -> None:
        from torch import tensor
        from transformers import AutoConfig, AutoTokenizer

        # Neighbours in length share a batch, so that little of it is padding.
        ordered = sorted(reactions, key=lambda reaction: len(reaction[0]))
        smiles, classes = zip(*ordered, strict=True)
        tokenizer = AutoTokenizer.from_pretrained(finetuned)
        self._batches = [
            tokenizer(
                list(smiles[start : start + BATCH_SIZE]),
                padding=True,
                truncation=True,
                return_tensors="pt",
            )
            for start in range(0, len(smiles), BATCH_SIZE)
        ]
        ids = AutoConfig.from_pretrained(finetuned).label2id
        self._labels = tensor([ids[name] for name in classes])
        self._reference = self._log_probabilities(finetuned)
        self.finetuned = self._compare(self._reference)

    def score(self, checkpoint: Path) -> Score:
        """Score of the checkpoint in a directory."""
        return self._compare(self._log_probabilities(checkpoint))

    def _log_probabilities(self, checkpoint: Path) -> Tensor:
        """Log probability of every class for every reaction, (reactions, classes), float64."""
        import torch
        from transformers import BertForSequenceClassification

        model, report = BertForSequenceClassification.from_pretrained(
            checkpoint, output_loading_info=True
        )
        if any(report.values()):
            raise SystemExit(f"agreement: {checkpoint} does not fit its config: {report}")
        with torch.inference_mode():
            logits = torch.cat([model.eval()(**batch).logits for batch in self._batches])
        return logits.double().log_softmax(-1)

    def _compare(self, answers: Tensor) -> Score:
        """Score of (reactions, classes) log probabilities."""
        chosen, reference = answers.argmax(-1), self._reference.argmax(-1)
        kl = (self._reference.exp() * (self._reference - answers)).sum(-1)
        return Score(
            agreement=(chosen == reference).double().mean().item(),
            kl=kl.mean().item(),
            accuracy=(chosen == self._labels).double().mean().item(),
        )


def read_reactions(path: Path) -> list[tuple[str, str]]:
    """Pairs of reaction and class from lines `REACTION<TAB>CLASS`; `#` starts a comment line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    pairs = [line.split("\t") for line in lines if line and not line.startswith("#")]
    return [(smiles, name) for smiles, name in pairs]


def measure(pair: Path) -> dict[str, Any]:
    """Truncate, score and collect everything that OUT.json holds."""
    import torch
    import transformers

    import svdcut

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    reactions = read_reactions(REACTIONS)
    judge = Judge(pair / "finetuned", reactions)
    rows = []
    for run in RUNS:
        with tempfile.TemporaryDirectory() as temporary:
            truncate(pair, run, Path(temporary))
            for k in run.ranks:
                row = measure_one(judge, Path(temporary, f"k{k}"))
                rows.append({"keep": run.keep, "seed": run.seed, "k": k, **row})
                print(json.dumps(rows[-1]), file=sys.stderr)
    return {
        "reactions": len(reactions),
        "classes": len({name for _, name in reactions}),
        "finetuned": {"accuracy": judge.finetuned.accuracy},
        "versions": {
            "svdcut": svdcut.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        "rows": rows,
    }


def measure_one(judge: Judge, checkpoint: Path) -> dict[str, float]:
    """Score of a truncated checkpoint, and the energy that its manifest says is left."""
    manifest = json.loads((checkpoint / "svdcut.json").read_text(encoding="utf-8"))
    energy = manifest["totals"]["energy_retained"]
    return {"energy_retained": energy, **asdict(judge.score(checkpoint))}


def truncate(pair: Path, run: Run, out: Path) -> None:
    """Write one checkpoint for each rank to `out/k{rank}`."""
    ranks = ",".join(map(str, run.ranks))
    command = [sys.executable, "-m", "svdcut", "truncate", str(pair / "base")]
    command += [str(pair / "finetuned"), "-k", ranks, "-o", str(out / "k{k}")]
    command += ["--keep", run.keep, "-q"]
    if run.seed is not None:
        command += ["--seed", str(run.seed)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def draw(result: dict[str, Any], path: Path) -> None:
    """Agreement against rank: one line for each `--keep`, labelled in place."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    style = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    with mpl.rc_context({**style, "font.size": 12.5}):
        figure, axes = plt.subplots(figsize=(8.75, 5.25), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.14, h_pad=0.14)
        _draw_frame(axes, result)
        for keep in ("bottom", "random", "top"):
            _draw_curve(axes, result["rows"], keep)
        _draw_labels(axes, result)
        # No software tag: the same numbers give the same file.
        options = {"metadata": {"Software": None}, "pil_kwargs": {"optimize": True}}
        figure.savefig(path, dpi=160, facecolor="white", **options)
        plt.close(figure)


def _position(k: int) -> float:
    """Place of a rank on the axis: log 2, with 0 where 1/2 would be."""
    return math.log2(k) if k else -1.0


def _draw_frame(axes: Axes, result: dict[str, Any]) -> None:
    """Title, axes and grid."""
    axes.set_title(
        f"Agreement with the fine-tuned model on {result['reactions']} held-out reactions",
        loc="left",
        fontsize=14.5,
        fontweight="bold",
        pad=32,
    )
    axes.text(
        0,
        1.03,
        f"BERT fine-tuned to {result['classes']} reaction classes, "
        "each matrix's update cut to rank k",
        transform=axes.transAxes,
    )
    axes.set_ylabel("reactions given the same class")
    axes.set_xlabel("rank k: singular triplets kept of each matrix's update")
    axes.set_xticks([_position(k) for k in RANKS], [str(k) for k in RANKS])
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
    axes.set_xlim(-1.25, 8.25)
    axes.set_ylim(-0.03, 1.12)
    axes.grid(axis="y", color=FAINT, linewidth=1)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, pad=7)
    axes.spines[:].set_visible(False)


def _draw_curve(axes: Axes, rows: list[dict[str, Any]], keep: str) -> None:
    """Mean agreement at each rank, and the span over seeds where there are several."""
    shared = {row["k"]: [row["agreement"]] for row in rows if row["keep"] == "top"}
    values = {k: shared[k] for k in (RANKS[0], RANKS[-1])}
    for row in rows:
        if row["keep"] == keep and row["k"] not in {RANKS[0], RANKS[-1]}:
            values.setdefault(row["k"], []).append(row["agreement"])
    ranks = sorted(values)
    x = [_position(k) for k in ranks]
    mean = [statistics.fmean(values[k]) for k in ranks]
    colour, front = COLOURS[keep], keep == "top"
    low, high = [min(values[k]) for k in ranks], [max(values[k]) for k in ranks]
    axes.fill_between(x, low, high, color=colour, alpha=0.22, linewidth=0)
    axes.plot(
        x,
        mean,
        color=colour,
        linewidth=3.2 if front else 2,
        marker="o",
        markersize=8 if front else 5,
        markeredgecolor="white",
        markeredgewidth=1.2,
        clip_on=False,
    )


def _draw_labels(axes: Axes, result: dict[str, Any]) -> None:
    """Name the curves where they run and the two ends where they are."""
    top = [row for row in result["rows"] if row["keep"] == "top"]
    ends = (
        (top[0], "base\nmatrices", (0, 11), "center"),
        (top[-1], "fine-tuned model", (9, 12), "right"),
    )
    for row, name, offset, side in ends:
        point = (_position(row["k"]), row["agreement"])
        axes.plot(*point, "o", color=INK, markersize=9, clip_on=False)
        axes.annotate(name, point, offset, textcoords="offset points", ha=side, va="bottom")
    for row in top:
        if 0.1 < row["agreement"] < 0.99:
            axes.annotate(
                f"{row['agreement']:.0%}".replace("%", " %"),
                (_position(row["k"]), row["agreement"]),
                (-9, 11) if row["agreement"] > 0.9 else (-9, 3),
                textcoords="offset points",
                ha="right",
                color=COLOURS["top"],
            )
    axes.text(2.2, 0.62, "largest triplets", color=COLOURS["top"], ha="right", fontweight="bold")
    axes.text(
        6.2,
        0.36,
        "random triplets\n(mean and range\nof 3 seeds)",
        color=COLOURS["random"],
        ha="right",
    )
    axes.text(7.32, 0.06, "smallest\ntriplets", color=COLOURS["bottom"])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pair", metavar="DIR", type=Path, help="made by real_pair.py")
    parser.add_argument("--out", type=Path, default=Path("docs/agreement"), help="less suffix")
    parser.add_argument("--redraw", action="store_true", help="draw OUT.png from OUT.json only")
    options = parser.parse_args()
    numbers = options.out.with_suffix(".json")
    if options.redraw:
        result = json.loads(numbers.read_text(encoding="utf-8"))
    elif not (options.pair / "finetuned").is_dir():
        parser.error(f"no {options.pair}/finetuned: make it with real_pair.py")
    else:
        try:
            result = measure(options.pair)
        except subprocess.CalledProcessError as error:
            sys.exit(error.returncode)  # svdcut has said why
        numbers.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    draw(result, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()

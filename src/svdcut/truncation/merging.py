"""A model as loaders are to find it: an adapter merged into its base, or kept out of the way.

Merged by what writes checkpoints, tensor by tensor, without a decomposition. It loads nothing.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

from svdcut.choose.keep import Keep
from svdcut.choose.options import Options, Rest
from svdcut.choose.ranks import FULL
from svdcut.files.checkpoint import Checkpoint, open_checkpoint
from svdcut.files.filenames import INDEX_NAME, is_there
from svdcut.pair.pairing import Action, Pair
from svdcut.pair.plan import Output, Plan, make_plan
from svdcut.record.progress import Observer, Progress
from svdcut.record.provenance import InputHashes
from svdcut.truncation.preflight import check_run
from svdcut.truncation.run import run_truncation
from svdcut.write.tensor_writer import output_error

_NAME = "svdcut-merged"


@contextmanager
def loadable(
    base: Checkpoint | None,
    finetuned: Checkpoint,
    options: Options,
    *,
    within: Path | None = None,
    hashes: InputHashes | None = None,
    observe: Observer = lambda progress: None,
) -> Iterator[Checkpoint]:
    """Yield a checkpoint that a model can be loaded from; of an adapter, for the context alone.

    Parameters
    ----------
    base : Checkpoint or None
        Of an adapter.
    finetuned : Checkpoint
        A model, which is yielded as it is, but for an adapter in its folder, which would be
        applied to it; or an adapter on `base`.
    options : Options
        Which matrices are stored in which dtype, and where to compute. What makes a cut
        another model than the fine-tuned one is not looked at: ranks, scale, `rest`.
    within : Path, optional
        Folder of one run at a time, to merge an adapter in; without it, the one for temporary
        files (TMPDIR).
    hashes : InputHashes, optional
        Of the two sides, at work; without them, an adapter's files and base's are hashed here.
    observe : callable
        Told of each tensor that is merged.

    Yields
    ------
    Checkpoint
        Of the adapter's name. Its folder is removed when the context is left, in any way.

    Raises
    ------
    OutputError
        If there is no room for it, or it cannot be written.
    SvdcutError
        As `make_plan` and `run_truncation` do.

    Notes
    -----
    Base plus update is summed in float64, and rounded once.
    """
    parent = Path(tempfile.gettempdir()) if within is None else within
    if base is None or not finetuned.is_adapter:
        with _without_adapter(finetuned, parent) as model:
            yield model
        return
    options = replace(options, rank_for=(), keep=Keep.TOP, scale=1.0, rest=Rest.FINETUNED)
    plan = _without_cuts(make_plan(base, finetuned, options))
    if within is not None:
        _remove_leftovers(within)
    _refuse_full(plan, parent, options, is_temporary=within is None)
    with _folder_in(parent) as folder:
        _write(plan, folder / "model", options, hashes, observe)
        merged = open_checkpoint(folder / "model")
        yield replace(merged, source=finetuned.source, revision=finetuned.revision)


@contextmanager
def _without_adapter(model: Checkpoint, parent: Path) -> Iterator[Checkpoint]:
    """Yield a model in a folder where a loader finds no adapter to apply to it."""
    if not model.ignores_adapter:
        yield model
        return
    assert model.directory is not None
    with _folder_in(parent) as folder:
        copied = model.sidecars()
        if is_there(model.directory / INDEX_NAME):
            copied[Path(INDEX_NAME)] = model.directory / INDEX_NAME
        for name, path in copied.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / name)
        for file in model.files:
            (folder / file.path.name).symlink_to(file.path.absolute())
        yield replace(model, directory=folder)


def _without_cuts(plan: Plan) -> Plan:
    """Return a plan of the same files, of which no matrix is decomposed: all stay whole."""

    def copied(pair: Pair) -> Pair:
        is_cut = pair.action is Action.TRUNCATE
        return replace(pair, action=Action.COPY_FINETUNED) if is_cut else pair

    return replace(
        plan,
        pairing=replace(plan.pairing, pairs=tuple(map(copied, plan.pairing.pairs))),
        tensors=tuple(replace(tensor, pair=copied(tensor.pair)) for tensor in plan.tensors),
    )


def _refuse_full(plan: Plan, parent: Path, options: Options, *, is_temporary: bool) -> None:
    place = "name another folder for temporary files: TMPDIR" if is_temporary else "another folder"
    check_run(plan, [Output(parent / _NAME, FULL)], options).refuse(
        hint=f"{plan.finetuned.source} is merged there with its base, {plan.base.source}, until "
        f"the model is loaded. Make room, or {place}."
    )


def _remove_leftovers(parent: Path) -> None:
    """Remove what a run has left that was killed."""
    for folder in parent.glob(f"{_NAME}-*"):
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _folder_in(parent: Path) -> Iterator[Path]:
    try:
        folder = Path(tempfile.mkdtemp(prefix=f"{_NAME}-", dir=parent))
    except OSError as error:
        raise output_error(parent, error) from error
    try:
        yield folder
    finally:
        try:
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            # Again: a signal may have ended the first attempt.
            shutil.rmtree(folder, ignore_errors=True)


def _write(
    plan: Plan, out: Path, options: Options, hashes: InputHashes | None, observe: Observer
) -> None:
    def tell(done: Progress) -> None:
        observe(replace(done, stage="merge", facts=()))

    with InputHashes(plan) if hashes is None else nullcontext(hashes) as at_work:
        run_truncation(plan, [Output(out, FULL)], options, at_work, observe=tell)

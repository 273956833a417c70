"""An adapter from the factors that were put aside: weights, configuration, card, manifest.

It computes no factor and chooses no place for one: `tensor_output` and `adapter` do.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from svdcut.adapter.layout import AdapterLayout, Source, Stored, lay_out_adapter
from svdcut.adapter.model_config import task_fields
from svdcut.adapter.numbers import arrange
from svdcut.adapter.places import Matrix
from svdcut.adapter.readers import list_limits
from svdcut.choose.options import Experts, Options
from svdcut.files.filenames import ADAPTER_CONFIG_NAME, ADAPTER_NAME
from svdcut.files.tensorfile import Dtype, FileLayout, TensorEntry, iterate_bytes, lay_out
from svdcut.pair.pairing import Pair
from svdcut.pair.plan import Plan
from svdcut.record.card import Loading
from svdcut.record.manifest import AdapterFact, Manifest, StoredFact
from svdcut.record.publication import Files, copy_files, describe_weights, write_record, write_text
from svdcut.streaming.stored_matrix import TORCH_DTYPES, MatrixEntry, to_bytes
from svdcut.truncation.adapter_plan import describe_model, find_changes
from svdcut.truncation.tensor_output import factor_dtype
from svdcut.write.writer import CheckpointWriter

_Bytes = bytes | bytearray | memoryview


def publish_adapter(
    writer: CheckpointWriter, plan: Plan, manifest: Manifest, options: Options
) -> Manifest:
    """Write an adapter, complete.

    Parameters
    ----------
    writer : CheckpointWriter
        The result's; it holds the parts of every tensor.
    plan : Plan
        The plan of the run.
    manifest : Manifest
        The result's, without its files.
    options : Options
        For the dtype of the factors.

    Returns
    -------
    Manifest
        With all files; as it is written.

    Raises
    ------
    UsageError
        If nothing of low rank is left.
    CheckpointError, OutputError
        If reading or writing fails.

    Notes
    -----
    Memory is that of the factors of one matrix, or of one stack of experts.
    """
    changes = find_changes(plan, manifest.tensors)
    apart = options.experts is Experts.SEPARATE
    layout = lay_out_adapter(changes, describe_model(plan), apart=apart)
    pairs = {tensor.pair.name: tensor.pair for tensor in plan.tensors}
    weights = _Weights(writer, pairs, manifest, layout, factor_dtype(options.dtype))
    file, stored = weights.write()
    task = find_task(plan)
    manifest = replace(manifest, adapter=AdapterFact(stored, task))
    files: Files = {file.name: describe_weights(file)}
    files |= copy_files(writer, plan.finetuned.tokenizer_files())
    files[ADAPTER_CONFIG_NAME] = write_text(writer, ADAPTER_CONFIG_NAME, _config(layout, manifest))
    has_tokenizer = "tokenizer_config.json" in files
    loading = Loading(plan.finetuned.config, task, has_tokenizer, list_limits(layout))
    return write_record(writer, plan, manifest, files, loading)


def find_task(plan: Plan) -> dict[str, Any]:
    """Return what the fine-tuned side's config says of its task and base's does not."""
    ours, theirs = task_fields(plan.finetuned.config), task_fields(plan.base.config)
    return {key: value for key, value in ours.items() if value != theirs.get(key)}


def _config(layout: AdapterLayout, manifest: Manifest) -> str:
    base = manifest.base
    named: dict[str, Any] = {
        "base_model_name_or_path": base.source.partition("@")[0] if base.revision else base.source,
        "revision": base.revision,
    }
    return json.dumps(named | dict(layout.config), indent=2) + "\n"


@dataclass(frozen=True, slots=True)
class _Weights:
    """The file of weights, which is laid out and written."""

    writer: CheckpointWriter
    pairs: Mapping[str, Pair]
    manifest: Manifest
    layout: AdapterLayout
    dtype: Dtype
    """The factors'."""

    def write(self) -> tuple[FileLayout, dict[str, StoredFact]]:
        """Write every tensor; return the file, and what is known of each."""
        shapes = {
            key: (self.dtype, shape)
            for slot in self.layout.slots
            for key, shape in zip(slot.keys, slot.shapes, strict=True)
        }
        for whole in self.layout.wholes:
            truncated = whole.source is Source.TRUNCATED
            shapes[whole.key] = (
                self.dtype if truncated else self._entry(whole).dtype,
                whole.shape,
            )
        file = lay_out(ADAPTER_NAME, shapes, {"format": "pt"})
        self.writer.add_file(file)
        entries = {entry.name: entry for entry in file.entries}
        stored: dict[str, StoredFact] = {}
        for key, pieces in self._contents():
            entry = entries[key]
            sink = self.writer.open(entry)
            for piece in pieces:
                sink.write(piece)
            stored[key] = StoredFact(entry.shape, entry.dtype.value, sink.finish())
        return file, stored

    def _contents(self) -> Iterator[tuple[str, Iterator[_Bytes]]]:
        """Yield the bytes of each tensor, by key."""
        for slot in self.layout.slots:
            factors = arrange(slot, self._factors, TORCH_DTYPES[self.dtype])
            for key, values in zip(slot.keys, factors, strict=True):
                yield key, iter([to_bytes(values)])
        for whole in self.layout.wholes:
            yield whole.key, self._whole(whole)

    def _factors(self, matrix: Matrix) -> tuple[Tensor, Tensor]:
        """Return left (m, k) and right (k, n) of a matrix as they were put aside."""
        cut = self.manifest.tensors[matrix.tensor].truncation
        assert cut is not None
        rank, position = cut.ranks[matrix.number], 2 * sum(map(bool, cut.ranks[: matrix.number]))
        left, right = (
            torch.frombuffer(self.writer.staging.read(place), dtype=TORCH_DTYPES[self.dtype])
            for place in self.writer.staging.parts(matrix.tensor)[position : position + 2]
        )
        return left.reshape(-1, rank), right.reshape(rank, -1)

    def _entry(self, whole: Stored) -> TensorEntry:
        """Return where a tensor that is stored whole lies in an input."""
        pair = self.pairs[whole.tensor]
        entry = pair.base if whole.source is Source.BASE else pair.finetuned
        assert entry is not None
        return entry

    def _whole(self, whole: Stored) -> Iterator[_Bytes]:
        places = self.writer.staging.parts(whole.tensor)
        if whole.source is Source.TRUNCATED:
            yield from self._truncated(self.pairs[whole.tensor])
        elif whole.source is Source.FINETUNED and places:
            yield from (self.writer.staging.read(place) for place in places)
        else:
            yield from iterate_bytes(self._entry(whole))

    def _truncated(self, pair: Pair) -> Iterator[memoryview]:
        """Yield ``base + truncated update`` of a matrix that cannot be stored as factors."""
        assert pair.base is not None
        rows, columns = shape = pair.matrices[0]
        left, right = (f.double() for f in self._factors(Matrix(pair.name, 0, rows, columns)))
        base = MatrixEntry(pair.base, 0, shape)
        for block, values in base.blocks(torch.device("cpu")):
            yield to_bytes((values.double() + left[block] @ right).to(TORCH_DTYPES[self.dtype]))

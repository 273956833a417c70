"""An adapter from the factors that were put aside: weights, configuration, card, manifest.

It computes no factor and chooses no place for one: `tensor_output` and `adapter` do.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from svdcut.adapter.arrange import arrange
from svdcut.adapter.layout import AdapterLayout, Slot, Source, Stored, lay_out_adapter
from svdcut.adapter.places import Matrix
from svdcut.adapter.readers import list_limits
from svdcut.adapter.task import task_fields
from svdcut.choose.options import Experts, Options
from svdcut.files.filenames import ADAPTER_CONFIG_NAME, ADAPTER_NAME, CARD_NAME, MANIFEST_NAME
from svdcut.files.tensorfile import Dtype, FileLayout, iterate_bytes, lay_out
from svdcut.pair.pairing import Pair
from svdcut.pair.plan import Plan
from svdcut.record.card import AdapterLoading, render_adapter_card
from svdcut.record.manifest import (
    AdapterFact,
    FileFact,
    Manifest,
    StoredFact,
    TensorFact,
    WeightFileFact,
)
from svdcut.streaming.stored_matrix import TORCH_DTYPES, MatrixEntry, to_bytes
from svdcut.truncation.adapter_plan import describe_model, find_changes
from svdcut.truncation.tensor_output import factor_dtype
from svdcut.write.tensor_writer import Range
from svdcut.write.writer import CheckpointWriter


def publish_adapter(
    writer: CheckpointWriter, plan: Plan, manifest: Manifest, options: Options
) -> Manifest:
    """Write an adapter, complete.

    Parameters
    ----------
    writer : CheckpointWriter
        Of the result; it holds the parts of every tensor.
    plan : Plan
        Of the run.
    manifest : Manifest
        Of the result, without its files.
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
    cuts, wholes = find_changes(plan, manifest.tensors)
    apart = options.experts is Experts.SEPARATE
    layout = lay_out_adapter(cuts, wholes, describe_model(plan), apart=apart)
    assembly = _Assembly(writer, plan, manifest.tensors, layout, factor_dtype(options.dtype))
    weights, stored = assembly.write()
    finetuned, base, task = plan.finetuned, plan.base, find_task(plan)
    manifest = replace(manifest, adapter=AdapterFact(stored, task))
    files: dict[str, WeightFileFact | FileFact] = {
        weights.name: WeightFileFact(weights.size_bytes, hashlib.sha256(weights.header).hexdigest())
    }
    for name, source in finetuned.tokenizer_files().items():
        files[str(name)] = FileFact(*writer.copy_file(source, name))
    limits = list_limits(layout)
    loading = AdapterLoading(finetuned.config, task, "tokenizer_config.json" in files, limits)
    card = render_adapter_card(manifest, finetuned.card(), base.card(), loading)
    texts = {ADAPTER_CONFIG_NAME: _config(layout, manifest), CARD_NAME: card}
    for written, text in texts.items():
        data = text.encode()
        writer.write_file(Path(written), data)
        files[written] = FileFact(len(data), hashlib.sha256(data).hexdigest())
    manifest = replace(manifest, files=files)
    writer.write_file(Path(MANIFEST_NAME), manifest.dumps().encode())
    return manifest


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
class _Assembly:
    """The file of weights at work."""

    writer: CheckpointWriter
    plan: Plan
    facts: Mapping[str, TensorFact]
    layout: AdapterLayout
    dtype: Dtype
    """Of the factors."""

    def write(self) -> tuple[FileLayout, dict[str, StoredFact]]:
        """Write every tensor; return the file, and what is known of each."""
        shapes = {
            key: (self.dtype, shape)
            for slot in self.layout.slots
            for key, shape in ((slot.key_a, slot.shape_a), (slot.key_b, slot.shape_b))
        }
        pairs = {tensor.pair.name: tensor.pair for tensor in self.plan.tensors}
        for whole in self.layout.wholes:
            shapes[whole.key] = (self._stored_dtype(whole, pairs[whole.tensor]), whole.shape)
        file = lay_out(ADAPTER_NAME, shapes, {"format": "pt"})
        self.writer.add_file(file)
        entries = {entry.name: entry for entry in file.entries}
        stored: dict[str, StoredFact] = {}

        def put(key: str, pieces: Iterator[bytes | bytearray | memoryview]) -> None:
            sink = self.writer.open(entries[key])
            for piece in pieces:
                sink.write(piece)
            entry = entries[key]
            stored[key] = StoredFact(entry.shape, entry.dtype.value, sink.finish())

        for slot in self.layout.slots:
            for key, values in zip((slot.key_a, slot.key_b), self._arranged(slot), strict=True):
                put(key, iter((to_bytes(values),)))
        for whole in self.layout.wholes:
            put(whole.key, self._whole(whole, pairs[whole.tensor]))
        return file, stored

    def _stored_dtype(self, whole: Stored, pair: Pair) -> Dtype:
        if whole.source is Source.TRUNCATED:
            return self.dtype
        if whole.source is Source.BASE and pair.base is not None:
            return pair.base.dtype
        return pair.finetuned.dtype

    def _arranged(self, slot: Slot) -> tuple[Tensor, Tensor]:
        if not slot.has_parts:
            dtype = TORCH_DTYPES[self.dtype]
            return torch.zeros(slot.shape_a, dtype=dtype), torch.zeros(slot.shape_b, dtype=dtype)
        matrices = [part.matrix for expert in slot.experts for part in expert if part.rank]
        return arrange(slot, {matrix: self._factors(matrix) for matrix in matrices})

    def _factors(self, matrix: Matrix) -> tuple[Tensor, Tensor]:
        """Return left (m, k) and right (k, n) of a matrix as they were put aside."""
        cut = self.facts[matrix.tensor].truncation
        assert cut is not None
        ranks = cut.ranks
        rank, position = ranks[matrix.number], 2 * sum(bool(k) for k in ranks[: matrix.number])
        places = self.writer.staging.parts(matrix.tensor)[position : position + 2]
        left, right = (self._tensor(place) for place in places)
        return left.reshape(-1, rank), right.reshape(rank, -1)

    def _tensor(self, place: Range) -> Tensor:
        data = self.writer.staging.read(place)
        return torch.frombuffer(data, dtype=TORCH_DTYPES[self.dtype])

    def _whole(self, whole: Stored, pair: Pair) -> Iterator[bytes | bytearray | memoryview]:
        places = self.writer.staging.parts(pair.name)
        if whole.source is Source.TRUNCATED:
            yield from self._truncated(pair)
        elif whole.source is Source.FINETUNED and places:
            yield from (self.writer.staging.read(place) for place in places)
        else:
            entry = pair.finetuned if whole.source is Source.FINETUNED else pair.base
            assert entry is not None
            yield from iterate_bytes(entry)

    def _truncated(self, pair: Pair) -> Iterator[memoryview]:
        """Yield ``base + truncated update`` of a matrix that cannot be stored as factors."""
        assert pair.base is not None
        rows, columns = shape = pair.matrices[0]
        left, right = (f.double() for f in self._factors(Matrix(pair.name, 0, rows, columns)))
        base = MatrixEntry(pair.base, 0, shape)
        for block, values in base.blocks(torch.device("cpu")):
            yield to_bytes((values.double() + left[block] @ right).to(TORCH_DTYPES[self.dtype]))

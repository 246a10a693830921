"""Parquet in the Hugging Face layout: `data/train-00000-of-00010.parquet` with the features Image and ClassLabel."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dim.runtime.errors import MissingExtraError
from dim.runtime.set_formats.file_sizes import choose_row_group_images
from dim.runtime.set_formats.part import Batch, HashedFile, PartFormat, PartRecord, PartWriter, Sink, make_record
from dim.runtime.set_formats.plan import Plan
from dim.runtime.set_formats.png import encoder_version
from dim.runtime.storage.local_store import Store

if TYPE_CHECKING:
    import pyarrow

# Rows of a batch by column: PNG, path, label, logits.
Columns = tuple[list[Any], list[Any], list[Any], list[Any]]


class Parquet(PartFormat):
    """The format `parquet`."""

    def encoder(self) -> str:
        try:
            import pyarrow
        except ImportError:
            raise MissingExtraError("pyarrow", "parquet", "write Parquet files") from None
        return f"{encoder_version()}, pyarrow {pyarrow.__version__}"

    def open(self, plan: Plan, store: Store, part: int) -> "ParquetPart":
        return ParquetPart(plan, store, part)

    def files(self, plan: Plan, part: int) -> Iterator[str]:
        yield f"data/train-{part:05d}-of-{plan.parts:05d}.parquet"

    def folders(self, plan: Plan) -> list[str]:
        return ["data"]


class ParquetPart(PartWriter):
    """Writes one Parquet file, a row group at a time."""

    def __init__(self, plan: Plan, store: Store, part: int) -> None:
        import pyarrow.parquet

        self._plan, self._part = plan, part
        self._name = next(Parquet().files(plan, part))
        self._schema = make_schema(plan)
        self._rows = choose_row_group_images(plan.image_bytes)
        self._columns: Columns = ([], [], [], [])
        self._images = 0
        self._file = HashedFile(store, f"{part}.parquet")
        with self._file.closing_on_error():
            self._writer = pyarrow.parquet.ParquetWriter(
                pyarrow.PythonFile(Sink(self._file), mode="w"),
                self._schema,
                compression="NONE",  # PNG does not shrink further
                use_dictionary=["label"],
                write_statistics=["label"],
            )

    def encode(self, batch: Batch) -> Columns:
        labels, indices = batch.labels.tolist(), batch.indices.tolist()
        paths = [f"{label:05d}-{index:08d}.png" for label, index in zip(labels, indices, strict=True)]
        return batch.png_files(), paths, labels, [] if batch.scores is None else list(batch.scores)

    def write(self, encoded: Columns) -> int:
        for column, more in zip(self._columns, encoded, strict=True):
            column.extend(more)
        while len(self._columns[0]) >= self._rows:
            self._write_rows(self._rows)
        return sum(map(len, encoded[0]))

    def _write_rows(self, count: int) -> None:
        """Write the first rows as a row group; its size does not depend on the batches."""
        import pyarrow

        pngs, paths, labels, scores = (column[:count] for column in self._columns)
        for column in self._columns:
            del column[:count]
        images = pyarrow.StructArray.from_arrays(
            [pyarrow.array(pngs, pyarrow.binary()), pyarrow.array(paths, pyarrow.string())], names=["bytes", "path"]
        )
        arrays = [images, pyarrow.array(labels, pyarrow.int64())]
        if scores:
            arrays.append(pyarrow.array(scores, self._schema.field("logits").type))
        self._writer.write_table(pyarrow.Table.from_arrays(arrays, schema=self._schema), row_group_size=count)
        self._images += count

    def finish(self) -> PartRecord:
        if self._columns[0]:
            self._write_rows(len(self._columns[0]))
        self._writer.close()
        return make_record(self._part, self._images, [self._file.publish(self._name)])

    def abort(self) -> None:
        # Closing the writer would write a footer under a half-made file.
        self._file.close()


def make_schema(plan: Plan) -> "pyarrow.Schema":
    """Make the columns `image`, `label` and perhaps `logits`, with the features that `datasets` reads."""
    import pyarrow

    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    fields = [("image", image), ("label", pyarrow.int64())]
    features: dict[str, Any] = {
        "image": {"_type": "Image"},
        "label": {"names": list(plan.classes), "_type": "ClassLabel"},
    }
    if plan.soft_labels:
        fields.append(("logits", pyarrow.list_(pyarrow.float16())))
        features["logits"] = {"feature": {"dtype": "float16", "_type": "Value"}, "_type": "Sequence"}
    metadata = {"huggingface": json.dumps({"info": {"features": features}}, ensure_ascii=False)}
    return pyarrow.schema(fields, metadata=metadata)

"""The card of a training set, `README.md`: what it is, how it was made, how it is read, and under which licence.

The YAML block on top is what Hugging Face reads. It names the files of the one split, because without it a class called
`train` or `test` would be taken for a split (CIFAR-100 has a class `train`).
"""

from collections.abc import Sequence

from dim.runtime.bundle_format.manifest import Manifest
from dim.runtime.markdown import escape, list_licence_fields, quote_code, quote_yaml
from dim.runtime.set_formats.plan import Plan

MAX_CLASSES_LISTED = 200
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
_PATTERN = {"imagefolder": "*/*.png", "parquet": "data/train-*.parquet", "webdataset": "train-*.tar"}
# Words that Hugging Face `imagefolder` takes for a split where they begin a folder's name.
SPLIT_WORDS = ("train", "training", "validation", "valid", "dev", "val", "test", "testing", "eval", "evaluation")


def describe_set(plan: Plan) -> str:
    """Say in one sentence, of Markdown, what a set is."""
    classes = sum(1 for count in plan.counts if count)
    return (
        f"{plan.images:,} synthetic images of {plan.height}x{plan.width} pixels in {classes:,} classes, drawn from the "
        f"generator '{escape(plan.bundle)}' by dim."
    )


def reads_as_split(name: str) -> bool:
    """Say whether Hugging Face `imagefolder` would take a class folder of that name for a split."""
    folded = name.casefold()
    return any(
        folded.startswith(word) and folded[len(word) : len(word) + 1] in ("", *"-._ 0123456789") for word in SPLIT_WORDS
    )


def write_card(manifest: Manifest, plan: Plan) -> bytes:
    """Write the card of a set.

    Args:
        manifest: the bundle's manifest.
        plan: the set's plan.

    Returns:
        the file `README.md`.
    """
    blocks = [
        _front_matter(manifest, plan),
        f"# {escape(plan.bundle)}: a generated training set\n\n{describe_set(plan)}",
        _classes(plan),
        "## Reading it\n\n" + _reading(plan),
        _normalisation(manifest),
        _origin(manifest, plan),
    ]
    return ("\n\n".join(block for block in blocks if block) + "\n").encode()


def _front_matter(manifest: Manifest, plan: Plan) -> str:
    size = next((word for limit, word in _SIZES if plan.images < limit), "n>10M")
    lines = ["---", *list_licence_fields(manifest.licence)]
    lines += ["task_categories:", "- image-classification", "tags:", "- synthetic", "- dataset-distillation"]
    lines += [f"pretty_name: {quote_yaml(plan.bundle + ' (generated)')}", "size_categories:", f"- {size}"]
    if pattern := _PATTERN.get(plan.format):
        lines += ["configs:", "- config_name: default", "  data_files:", "  - split: train", f'    path: "{pattern}"']
    return "\n".join([*lines, "---"])


def _classes(plan: Plan) -> str:
    rows = [
        (label, name, count) for label, (name, count) in enumerate(zip(plan.classes, plan.counts, strict=True)) if count
    ]
    lines = [f"| {label} | {escape(name)} | {count:,} |" for label, name, count in rows[:MAX_CLASSES_LISTED]]
    if len(rows) > MAX_CLASSES_LISTED:
        lines.append(f"| | and {len(rows) - MAX_CLASSES_LISTED:,} more, see `dataset.json` | |")
    return "\n".join(["## Classes\n", "| label | class | images |", "|---|---|---|", *lines])


def _reading(plan: Plan) -> str:
    text = {
        "imagefolder": """```python
datasets.load_dataset("path/to/this/folder")                 # Hugging Face
torchvision.datasets.ImageFolder("path/to/this/folder")
```

One folder per class, one PNG per image. Both readers number the classes by the alphabetical order of the folders, not
by the labels of the table above; `dataset.json` has the order of the labels.""",
        "npz": """```python
data = numpy.load("train.npz")
data["images"], data["labels"], data["classes"]              # uint8 [N, H, W, C], int64 [N], str [K]
```""",
        "npy": """```python
images = numpy.load("images.npy", mmap_mode="r")             # uint8 [N, H, W, C]
labels = numpy.load("labels.npy", mmap_mode="r")             # int64 [N]
classes = json.load(open("classes.json"))
```""",
        "parquet": """```python
datasets.load_dataset("path/to/this/folder")                 # features Image and ClassLabel
```""",
        "webdataset": f"""```python
shards = webdataset.WebDataset("train-{plan.identity}-{{000000..{plan.parts - 1:06d}}}.tar", shardshuffle=100)
for image, label in shards.shuffle(10_000).decode("rgb8").to_tuple("png", "cls"): ...
```

`classes.json` has the names in the order of the labels.""",
    }[plan.format]
    if plan.format in ("npz", "npy") and plan.parts > 1:
        text += (
            f"\n\nThe set is cut into {plan.parts:,} files of up to {plan.part_images:,} images each, numbered from 0."
        )
    if plan.soft_labels:
        where = {"parquet": "the column `logits`", "webdataset": "`<key>.logits.npy`", "imagefolder": "`logits.npy`"}
        text += f"\n\nSoft labels, the teacher's logits as float16, stand in {where.get(plan.format, '`logits.npy`')}."
    return text + (
        "\n\nThe images come in an order of which every prefix is balanced (image 0 of each class, then image 1, ...): "
        "shuffle them for training."
    )


def _normalisation(manifest: Manifest) -> str:
    mean = ", ".join(f"{value:.4f}" for value in manifest.source.mean)
    std = ", ".join(f"{value:.4f}" for value in manifest.source.std)
    return (
        "## Pixels\n\n8 bits per channel, as the generator draws them: no normalisation, no augmentation. The source's "
        f"training images, scaled to 0..1, have the mean ({mean}) and the standard deviation ({std}) per channel."
    )


def _origin(manifest: Manifest, plan: Plan) -> str:
    engine = plan.engine
    batch = f", batch {engine.batch}" if engine.batch is not None else ""
    classes = sum(1 for count in plan.counts if count)
    counts = {count for count in plan.counts if count}
    size = f"{counts.pop():,} of each of {classes:,} classes" if len(counts) == 1 else f"{plan.images:,}, see the table"
    lines = [
        "## Where it comes from\n",
        f"- generator: {quote_code(plan.bundle)}, content id {quote_code(plan.content_id)}",
        f"- images: {size}, indices from {plan.start:,}, seed {plan.seed}",
        f"- engine: {escape(engine.name)} ({escape(engine.version)}, {escape(engine.device)}, "
        f"{escape(engine.precision)}{batch})",
        f"- source: {escape(manifest.source.name)}"
        + (f" ({escape(manifest.source.note)})" if manifest.source.note else ""),
        f"- licence of the source: {escape(manifest.source.licence) or 'not stated'}",
        f"- licence of the generator: {escape(manifest.licence) or 'not stated'}",
        "\n`dataset.json` has the whole plan and the hash of every part; the same plan gives the same bytes again.",
    ]
    return "\n".join(lines)


def list_split_like_classes(classes: Sequence[str], counts: Sequence[int]) -> list[str]:
    """List the classes of a set whose folders Hugging Face would take for splits."""
    return [name for name, count in zip(classes, counts, strict=True) if count and reads_as_split(name)]

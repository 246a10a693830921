"""The names of a bundle's files and the version of their format."""

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
CANONICAL_ONNX = "generator.fp32.onnx"
FIXED_LATENTS = "latents.npz"
ACCEPTED = "accepted.bin"
TEACHER_ONNX = "teacher.onnx"
PREVIEW = "preview.png"
PRECISIONS = ("fp32", "fp16", "int8")
MAX_MANIFEST_BYTES = 8 * 2**20

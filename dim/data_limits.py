"""The limits under which source data is read; every reader of `dim.data` keeps them.

A dataset may come from a stranger. These figures bound what one file can cost before it is refused. Peak memory of
`load_data` is at most `MAX_SET_BYTES` for the images it returns (plus one copy of an array source while it is
converted), plus `MAX_FILE_BYTES` and eight bytes per pixel of `MAX_IMAGE_PIXELS` for every decoding thread, plus about
1 KB per member listed.
"""

MIN_IMAGE_PX = 8
MAX_IMAGE_PX = 128
"""The sides that images are resized to, in pixels."""

MAX_CLASSES = 100_000
"""Classes in one set."""

MAX_IMAGES = 20_000_000
"""Images in one set, both splits together."""

MAX_SET_BYTES = 16 * 2**30
"""Bytes of all images of one set, as uint8 (64x64 ImageNet needs 15.7e9)."""

MAX_FILE_BYTES = 64 * 2**20
"""Bytes of one image file, unpacked."""

MAX_IMAGE_PIXELS = 2**26
"""Pixels of one image file before it is resized (8192 x 8192)."""

MAX_MEMBERS = 4_000_000
"""Members of one archive, or entries below one folder."""

MAX_UNPACKED_BYTES = 2**40
"""Bytes that come out of one compressed archive, read or skipped."""

MAX_PATH_DEPTH = 16
"""Folders above a file inside an archive or a class folder."""

MAX_PATH_BYTES = 4096
"""Bytes of one path inside an archive."""

MAX_DECODER_BYTES = 256 * 2**20
"""Memory that an xz stream may ask of its decoder (`xz -9` asks for 65 MB)."""

MAX_ARRAY_DIMS = 4
"""Dimensions of one array in an IDX, NPZ or MATLAB file."""

MAX_PICKLE_BYTES = 256 * 2**20
"""Bytes of one CIFAR batch (the largest official one has 155 MB)."""

MAX_PICKLE_STEPS = 4_000_000
"""Instructions of one CIFAR batch (the largest official one has about 450,000)."""

"""The limits under which source data is read; every reader of `dim.data` keeps them.

A dataset may come from a stranger. These figures limit what one file can cost before it is refused. The memory of
`load_data` is at most the sum of: four times `MAX_SET_BYTES` (arrays as they are read, split, made grey and resized; a
tree of image files is decoded straight to its final size and needs it twice), 24 bytes per pixel of `MAX_IMAGE_PIXELS`
(large images are decoded one at a time), `MAX_KEPT_BYTES` and `MAX_QUEUED_BYTES` of files not yet decoded,
`MAX_DECODER_BYTES`, and about 1 KB per member listed. No header alone causes an allocation: arrays grow with the bytes
that arrive, and a tree is allocated after its files' headers were read.
"""

MIN_IMAGE_PX = 8
MAX_IMAGE_PX = 128
"""The sides that images are resized to, in pixels."""

MAX_SET_BYTES = 16 * 2**30
"""Bytes of all images of one set, as uint8 (64x64 ImageNet needs 15.7e9)."""

MAX_LABELS = 50_000_000
"""Labels in one array, which become eight bytes each."""

MAX_FILE_BYTES = 64 * 2**20
"""Bytes of one image file, unpacked."""

MAX_IMAGE_PIXELS = 2**26
"""Pixels of one image file before it is resized (8192 x 8192)."""

MAX_TABLE_BYTES = 32 * 2**20
"""Bytes of all tables of labels beside images; what goes beyond is passed over."""

MAX_KEPT_BYTES = 256 * 2**20
"""Bytes of image files kept between the two passes over a tree; a larger tree is read twice."""

MAX_QUEUED_BYTES = 256 * 2**20
"""Bytes of image files that wait for a decoding thread."""

LARGE_IMAGE_PIXELS = 2**22
"""Above this, one image is decoded at a time, whatever the number of threads."""

MAX_JPEG_SCANS = 100
"""Scans of one progressive JPEG (usual files have about ten; every scan costs a pass over all pixels)."""

MAX_MEMBERS = 2_000_000
"""Members of one archive, or entries below one folder."""

MAX_UNPACKED_BYTES = 2**40
"""Bytes that the members of one archive unpack to, read or skipped."""

MAX_PATH_DEPTH = 16
"""Folders above a file inside an archive or a class folder."""

MAX_PATH_BYTES = 4096
"""Bytes of one path inside an archive."""

MAX_CLASS_NAME_BYTES = 200
"""Bytes of one class name, which becomes a folder's name when sets are written."""

MAX_HEADER_BYTES = 16 * 2**10
"""Bytes of all headers of one member of a tar archive together (a path of 4,096 bytes needs 6,144)."""

MAX_DECODER_BYTES = 256 * 2**20
"""Memory that an xz stream may ask of its decoder (`xz -9` asks for 65 MB)."""

MAX_ARRAY_DIMS = 4
"""Dimensions of one array in an IDX or NPZ file."""

MAX_CIFAR_BATCH_BYTES = 256 * 2**20
"""Bytes of one CIFAR batch (the largest official one has 155 MB)."""

"""A plan that tests of set formats share."""

from dim.runtime.set_formats.plan import EngineInfo, Plan

PLAN = Plan(
    bundle="pets",
    content_id="0" * 64,
    sampling_version=1,
    seed=7,
    start=3,
    fixed_latents=False,
    classes=("cat", "dog"),
    counts=(5, 2),
    height=8,
    width=8,
    channels=3,
    format="imagefolder",
    part_images=3,
    teacher="",
    encoder="png",
    engine=EngineInfo(name="fake", version="fake 1", device="cpu", precision="fp32", batch=None),
)

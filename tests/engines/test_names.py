"""What users read of engines: those that they can have, and what to do where one fails."""

from pathlib import Path

import pytest
from cli_tools import dim, one_line

from dim.runtime.engines.base import EngineOptions, make_drawing_error
from dim.runtime.engines.names import OFFERED_ENGINES, describe_unknown
from dim.runtime.errors import BadValueError


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("onnxruntime", "onnxruntime-cpu"),
        ("OpenVINO-CPU", "openvino-cpu"),
        ("tensort", "tensorrt"),
        ("rtx", "tensorrt-rtx"),
        ("cuda", "onnxruntime-cuda"),
        ("foo", None),
        ("", None),
    ],
)
def test_an_unknown_engine_is_answered_by_those_there_are(name: str, meant: str | None) -> None:
    with pytest.raises(BadValueError) as caught:
        EngineOptions(engine=name)
    hint = f" (did you mean {meant}?)" if meant else ""
    assert str(caught.value) == (
        f"There is no engine {name!r}{hint}; there are auto, {', '.join(OFFERED_ENGINES)}, and dim doctor says which "
        "work here."
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "--ipc", 1, "--out", "set", "--engine", "foo"),
        ("bench", "--engine", "foo"),
        ("eval", "--bundle", "mnist", "--engine", "foo"),
    ],
)
def test_no_command_offers_the_engine_of_the_tests(arguments: tuple[str, ...], tmp_path: Path) -> None:
    line = one_line(dim(*arguments))
    assert line.startswith("There is no engine 'foo'; there are ") and "fake" not in line


def test_an_engine_that_fails_says_what_to_do() -> None:
    doing = "failed while drawing 8 images"
    for reason in ("std::bad_alloc", "Failed to allocate memory for requested buffer", "MemoryError"):
        assert str(make_drawing_error("onnxruntime-cpu", doing, reason)) == (
            f"onnxruntime-cpu failed while drawing 8 images ({reason}): free some memory, or use a machine with more, "
            "and run the same command again."
        )
    assert str(make_drawing_error("onnxruntime-cpu", doing, "Non-zero status code")).endswith(
        "(Non-zero status code): dim verify says whether it is the bundle, and dim doctor whether it is the engine."
    )
    assert describe_unknown("onx", ("onnx",)).startswith(
        "There is no engine 'onx' (did you mean onnx?); there are onnx,"
    )

"""The benchmarks run; how fast is their own business."""

from conftest import build_tiny, load_tool


def test_decoding_benchmark_measures_every_decoder():
    times = load_tool("decoding").measure(*build_tiny("phrases"), batch=2, repeats=1)
    assert {name.split(",")[0] for name in times} == {"prefill", "slots", "constrained", "free"}
    assert all(seconds > 0 for seconds in times.values())

"""Every kernel compiles for GPUs that are not here, and what it compiles to has the loads it was designed
for."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="compiling the kernels needs Triton")

from halp_fx.kernels import aot


@pytest.mark.parametrize("capability", [80, 90], ids=["sm_80", "sm_90"])
def test_every_kernel_compiles(capability):
    for compiled in aot.compile_all(capability):
        assert f".target sm_{capability}" in compiled.ptx, compiled.name
        assert compiled.cubin[:4] == b"\x7fELF", compiled.name
        assert not compiled.count(r"(?:ld|st)\.local"), f"{compiled.name} spills in PTX"


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_weights_and_gradients_are_read_16_bytes_at_a_time(dtype):
    compiled = aot.compile_saliency(dtype, "taylor", 90)
    per_tile = 4 if dtype == "fp32" else 2
    assert compiled.count(r"ld\.global\S*evict_first\S*v4\.b32") == 2 * per_tile, "this tile and the next"
    assert compiled.count(r"ld\.global\S*evict_first") == 2 * per_tile, "no narrower load of a weight"


def test_the_wait_acquires_and_the_items_release():
    compiled = aot.compile_saliency("fp32", "taylor", 90)
    assert compiled.count(r"\.acquire\.") >= 1
    assert compiled.count(r"\.release\.") >= 1
    assert not compiled.count(r"(?:atom|red)\.global\S*\.f(?:16|32|64)"), (
        "a float atomic would make the order of sums matter"
    )


@pytest.mark.parametrize(("dtype", "loads", "times"), [("fp32", r"v4\.b32", 1), ("fp64", r"v2\.b64", 2)])
def test_a_lookup_reads_a_cell_in_whole_vectors(dtype, loads, times):
    compiled = aot.compile_lookup(dtype, 90)
    assert compiled.count(rf"ld\.global\S*{loads}") == times
    assert not compiled.count(r"(?:ld|st)\.shared"), "one query per thread: no exchange"

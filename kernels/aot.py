"""Ahead-of-time compilation of every kernel, for GPUs that need not be there.

Takes a compute capability, gives PTX and cubin per kernel variant: what a test without a GPU can hold the kernels to,
and what `tools/bench_kernels.py --ptx` reports from.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from . import interpolate, reduction, saliency
from .variants import VARIANTS
from .workplan import FIELDS, Tiling

FLOAT32, BFLOAT16, FLOAT16, FLOAT64 = (5 * code for code in range(4))
DENSE = 16
KINDS = {
    "fp32": (FLOAT32 + DENSE,),
    "bf16": (BFLOAT16 + DENSE,),
    "fp16": (FLOAT16 + DENSE,),
    "fp32-any-stride": (FLOAT32,),
    "bf16-any-stride": (BFLOAT16,),
    "fp64": (FLOAT64 + DENSE, FLOAT64),
    # bf16 weights under float32 BatchNorm, the odd input layer, float32 gradients of bf16 weights
    "mixed": (FLOAT32 + DENSE, FLOAT32, BFLOAT16 + DENSE, BFLOAT16, 1 + 4 * 0 + DENSE),
}


@dataclass(frozen=True, slots=True)
class Compiled:
    """One kernel variant, compiled.

    Attributes:
        name: kernel and variant.
        ptx, cubin: the outputs.
    """

    name: str
    ptx: str
    cubin: bytes

    def count(self, instruction: str) -> int:
        """Occurrences of an instruction in the PTX, by regular expression."""
        return len(re.findall(instruction, self.ptx))


def _compile(
    name: str, kernel: Any, types: dict[str, str], constants: dict[str, Any], target: GPUTarget, warps: int
) -> Compiled:
    names = kernel.arg_names
    signature = {n: types.get(n, "constexpr") for n in names}
    constexprs = {(names.index(n),): value for n, value in constants.items()}
    # PyTorch allocates on 512-byte boundaries, so a launch specialises pointers in this way.
    attrs = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if types.get(n, "").startswith("*")}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constexprs, attrs=attrs)
    compiled = triton.compile(source, target=target, options={"num_warps": warps, "enable_fp_fusion": True})
    return Compiled(name, compiled.asm["ptx"], compiled.asm["cubin"])


def compile_saliency(
    kinds: str, variant: str, capability: int, accumulate: bool = True, out: str = "*fp32", lanes: int = 32
) -> Compiled:
    """The saliency kernel for one entry of `KINDS` and one variant."""
    pointers = {"pointers": "*i64", "items": "*i64", "offsets": "*i64", "partials": "*fp32", "out": out}
    scalars = {"num_items": "i32", "num_blocks": "i32", "num_channels": "i32"}
    tables = {"indptr": "*i32", "index": "*i32", "counters": "*i32"}
    kind, tiling = VARIANTS[variant], Tiling()
    constants = {
        "KINDS": sum(1 << k for k in KINDS[kinds]),
        "FIELDS": FIELDS,
        "ELEMENT": int(kind.element),
        "FINAL": int(kind.final),
        "ACCUMULATE": accumulate,
        "ROWS": tiling.rows,
        "COLS": tiling.cols,
        "CHANNELS": saliency.FINISH_TILE // lanes,
        "LANES": lanes,
    }
    target = GPUTarget("cuda", capability, 32)
    types = pointers | scalars | tables
    name = f"saliency {variant} {kinds}"
    return _compile(name, reduction.saliency_kernel, types, constants, target, saliency.NUM_WARPS)


def compile_lookup(dtype: str, capability: int, queries: str = "i64") -> Compiled:
    """The lookup kernel for cells of `dtype` ("fp32", "fp64")."""
    types = dict.fromkeys(("layer", "cin", "cout"), f"*{queries}")
    types |= {"cells": f"*{dtype}", "out": f"*{dtype}", "inputs": "*i64", "outputs": "*i64"}
    types |= dict.fromkeys(("num_queries", "num_layers", "widest_in", "widest_out"), "i32")
    constants = {"BLOCK": interpolate.BLOCK}
    target = GPUTarget("cuda", capability, 32)
    return _compile(f"lookup {dtype}", interpolate.lookup_kernel, types, constants, target, interpolate.NUM_WARPS)


def compile_all(capability: int) -> Iterator[Compiled]:
    """Every kernel: all variants in float32, all dtypes and strides for "taylor", both lookups."""
    for variant in VARIANTS:
        yield compile_saliency("fp32", variant, capability)
    for kinds in KINDS:
        if kinds != "fp32":
            yield compile_saliency(kinds, "taylor", capability)
    yield compile_saliency("mixed", "l2", capability)
    yield compile_saliency("fp32", "taylor", capability, accumulate=False, lanes=256)
    yield compile_saliency("fp32", "taylor", capability, out="*fp64", lanes=16)
    yield from (compile_lookup(dtype, capability) for dtype in ("fp32", "fp64"))


def report(capability: int) -> str:
    """What can be said without a device: 16-byte loads and local memory of every kernel, as a Markdown table."""
    lines = ["| kernel | v4.b32 loads | v2.b64 loads | local loads and stores |", "|---|---|---|---|"]
    for compiled in compile_all(capability):
        counts = (r"ld\.global\S*v4\.b32", r"ld\.global\S*v2\.b64", r"(?:ld|st)\.local")
        lines.append(f"| {compiled.name} | " + " | ".join(str(compiled.count(c)) for c in counts) + " |")
    return "\n".join(lines) + "\n"

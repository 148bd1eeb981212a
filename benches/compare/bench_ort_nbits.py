#!/usr/bin/env python3
"""onnxruntime's MatMulNBits on the CPU: only the linears of a Llama shape, one JSON line.

  bench_ort_nbits.py [--shape 1.1b] [--threads 2] [--accuracy 4] [--prompt 512] [--decode 32]

4 bits, blocks of 128, asymmetric: random codes. --accuracy 4 = int8 activations, 1 = float32 ones. No attention,
norms, embeddings or lm_head are in it, so its tokens/s are an upper bound for an engine on these kernels.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from make_random_llama import SHAPES, linear_sizes
from onnx import TensorProto, helper, numpy_helper
from timing import line, measured


def graph(shape, accuracy, group=128):
    make, nodes, weights, outs = np.random.default_rng(0), [], [], []
    hidden, inter, layers, *_ = SHAPES[shape]
    for i in range(layers):
        for name, (n_out, n_in) in linear_sizes(shape).items():
            at, blocks = f"{i}.{name}", n_in // group
            parts = {
                "q": make.integers(0, 256, (n_out, blocks, group // 2), np.uint8),
                "s": make.random(n_out * blocks, np.float32) * 0.01,
                "z": make.integers(0, 256, n_out * ((blocks + 1) // 2), np.uint8),
            }
            weights += [numpy_helper.from_array(v, f"{at}.{k}") for k, v in parts.items()]
            nodes.append(
                helper.make_node(
                    "MatMulNBits",
                    ["x" if n_in == hidden else "h"] + [f"{at}.{k}" for k in parts],
                    [at + ".y"],
                    domain="com.microsoft",
                    K=n_in,
                    N=n_out,
                    bits=4,
                    block_size=group,
                    accuracy_level=accuracy,
                )
            )
            nodes.append(helper.make_node("ReduceMax", [at + ".y"], [at + ".m"], keepdims=0))
            outs.append(at + ".m")
    nodes.append(helper.make_node("Sum", outs, ["out"]))
    f32 = TensorProto.FLOAT
    made = helper.make_graph(
        nodes,
        "linears",
        [helper.make_tensor_value_info("x", f32, ["m", hidden]), helper.make_tensor_value_info("h", f32, ["m", inter])],
        [helper.make_tensor_value_info("out", f32, [])],
        weights,
    )
    return helper.make_model(
        made, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)], ir_version=8
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="1.1b")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--accuracy", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--decode", type=int, default=32)
    options = parser.parse_args()
    cached = Path(tempfile.gettempdir()) / f"ort-nbits-{options.shape}-{options.accuracy}.onnx"
    if not cached.exists():
        onnx.save(graph(options.shape, options.accuracy), cached)
    how = ort.SessionOptions()
    how.intra_op_num_threads, how.inter_op_num_threads = options.threads, 1
    start = time.perf_counter()
    session = ort.InferenceSession(str(cached), how, providers=["CPUExecutionProvider"])
    load_s = time.perf_counter() - start
    hidden, inter, *_ = SHAPES[options.shape]
    make = np.random.default_rng(1)
    feeds = {
        n: {"x": make.standard_normal((n, hidden), np.float32), "h": make.standard_normal((n, inter), np.float32)}
        for n in (1, 16, options.prompt)
    }

    def run(n):
        return session.run(None, feeds[n])

    line(
        {
            "engine": f"onnxruntime-nbits-acc{options.accuracy}",
            "model": options.shape,
            "threads": options.threads,
            "file_mib": round(cached.stat().st_size / 2**20, 1),
            "load_s": load_s,
        },
        measured(lambda _: None, lambda: None, run, lambda _: run(1), options.prompt, options.decode, False, 1),
    )


if __name__ == "__main__":
    main()

"""`roof`: what this machine can do at most: copies, products by precision, cost of a call.

`copy` counts bytes read and written; `gemm_*` are square products by torch with its float32 matmul
precision set accordingly; `host_call` is what the host pays for a call of a torch operator. On
CUDA, `launch` is the time from one launch to the next and `graph_replay` the same in a CUDA graph;
`gemm_tf32x3` is a third of `gemm_tf32`. `value` is the best sample: other work only slows down.
"""

from __future__ import annotations

import argparse

import torch

from bench.arguments import add_device, positive
from bench.command import add_json_option, check_target, show
from bench.roofline.roofs import DEFAULT_SIZES, Sizes, measure

COLUMNS = ("roof", "value", "unit", "median", "what")


def add_options(parser: argparse.ArgumentParser) -> None:
    add_device(parser)
    parser.add_argument("--repeats", type=positive(int), default=7, help="default: %(default)s")
    parser.add_argument("--size", type=positive(int), help="n of products of [n, n]")
    parser.add_argument("--copy-mib", type=positive(int), help="size of the copy's source")
    parser.add_argument("--threads", type=positive(int), help="of the CPU")
    add_json_option(parser)


def run(options: argparse.Namespace) -> int:
    check_target(options.json)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    sizes = DEFAULT_SIZES[torch.device(options.device).type]
    copied = sizes.copied if options.copy_mib is None else options.copy_mib * 2**20
    rows = measure(options.device, Sizes(copied, options.size or sizes.product), options.repeats)
    for row in rows:
        row |= {"device": options.device, "threads": torch.get_num_threads()}
    show(rows, COLUMNS, options.json)
    return 0

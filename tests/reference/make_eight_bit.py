"""Write matrices in both 8-bit forms of bitsandbytes, and what its own functions make of them.

Needs torch and bitsandbytes (0.50.2); the file beside this one is what ``make test`` compares with.
"""

from __future__ import annotations

from pathlib import Path

import bitsandbytes.functional as bnb
import numpy as np
import torch

HERE = Path(__file__).parent


def main() -> None:
    """Write ``eight_bit.npz``: more values than a block has, cut inside a row."""
    torch.manual_seed(3)
    weight = torch.randn(24, 250) * 0.1
    rows, scales, _ = bnb.int8_vectorwise_quant(weight.half())
    blocks, state = bnb.quantize_blockwise(weight, blocksize=4096)
    np.savez_compressed(
        HERE / "eight_bit.npz",
        rows=rows.numpy(),
        scales=scales.float().numpy().reshape(-1),
        rows_mean=bnb.int8_vectorwise_dequant(rows, scales).float().numpy(),
        blocks=blocks.numpy().reshape(weight.shape),
        absmax=state.absmax.numpy(),
        code=state.code.numpy(),
        blocks_mean=bnb.dequantize_blockwise(blocks, state).numpy().reshape(weight.shape),
    )


if __name__ == "__main__":
    main()

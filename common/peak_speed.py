"""The operations a second that a device can do at most: by its data sheet, or measured."""

import functools
import re
import time
from collections.abc import Callable

import torch


# Dense TFLOP/s of one device, as torch counts devices, from the makers' data sheets: (bf16, TF32, float32). Where a
# sheet gives the rate "with sparsity" alone, it is half of that; bf16 is the rate with float32 sums. The first pattern
# that matches the name counts.
PEAKS: tuple[tuple[str, tuple[float | None, float | None, float]], ...] = (
    (r"\bGB200\b", (2500, 1250, 80)),
    (r"\bB[23]00\b", (2250, 1125, 75)),
    (r"\bH[12]00 NVL\b", (835.5, 417.5, 60)),
    (r"\bH[18]00 PCIe\b", (756, 378, 51)),
    (r"\b(H100|H200|H800|GH200)\b", (989.4, 494.7, 66.9)),
    (r"\bH20\b", (148, 74, 44)),
    (r"\bA[18]00\b", (312, 156, 19.5)),
    (r"\bA40\b", (149.7, 74.8, 37.4)),
    (r"\bA30\b", (165, 82, 10.3)),
    (r"\bA10G\b", (70, 35, 35)),
    (r"\bA10\b", (125, 62.5, 31.2)),
    (r"\bL40S\b", (362, 183, 91.6)),
    (r"\bL40\b", (181, 90.5, 90.5)),
    (r"\bL4\b", (121, 60, 30.3)),
    (r"\bRTX 6000 Ada\b", (364.2, 182.1, 91.1)),
    (r"\bRTX A6000\b", (154.8, 77.4, 38.7)),
    (r"\bRTX 5090$", (209.5, 104.8, 104.8)),
    (r"\bRTX 4090$", (165.2, 82.6, 82.6)),
    (r"\bRTX 3090$", (71, 35.6, 35.6)),
    (r"\bV100S\b", (None, None, 16.4)),
    (r"\bV100-(SXM|DGXS)", (None, None, 15.7)),
    (r"\bV100-(PCIE|FHHL)", (None, None, 14)),
    (r"\bT4\b", (None, None, 8.1)),
    (r"\bMI3(00|25)X\b", (1307.4, 653.7, 163.4)),
    (r"\bMI250X\b", (191.5, None, 47.9)),  # of one of the two dies, each of which is a device
    (r"\bMI250\b", (181, None, 45.3)),
    (r"\bMI210\b", (181, None, 45.3)),
    (r"\bMI100\b", (92.3, None, 46.1)),
)
PRODUCT_ROWS, PRODUCT_SIZE = 4096, 1024  # the product that is timed is one of so many rows with a square matrix


def peak_flops(device: torch.device, precision: str) -> float | None:
    """FLOP/s that one device can do at most, None where that is unknown.

    Of a GPU it is the data sheet's number; of another device, that of a matrix product by all threads of this process.

    Args:
        device: where the model is.
        precision: `bf16`, or `no` for float32 (TF32 where torch is set to use it).
    """
    if device.type != "cuda":
        return measure_flops(device, torch.bfloat16 if precision == "bf16" else torch.float32)
    row = data_sheet(torch.cuda.get_device_name(device))
    if row is None:
        return None
    bf16, tf32, float32 = row
    if precision == "bf16":
        teraflops = bf16
    else:
        teraflops = tf32 if tf32 is not None and torch.backends.cuda.matmul.allow_tf32 else float32
    return None if teraflops is None else teraflops * 1e12


def data_sheet(name: str) -> tuple[float | None, float | None, float] | None:
    """The row of `PEAKS` for a device of this name; None for an unknown one, and for a part of one (MIG)."""
    if "MIG" in name.split():
        return None
    return next((row for pattern, row in PEAKS if re.search(pattern, name)), None)


@functools.cache
def measure_flops(device: torch.device, dtype: torch.dtype, seconds: float = 0.5) -> float:
    """FLOP/s of a matrix product, the fastest of those done in that time; measured once in a process.

    A CPU does it in both ways that torch has, which may be two libraries: as a product, and as a convolution.
    """
    generator = torch.Generator().manual_seed(0)  # not the one that the run draws from
    rows = torch.rand(PRODUCT_ROWS, PRODUCT_SIZE, generator=generator).to(device, dtype)
    matrix = rows[:PRODUCT_SIZE]
    image = rows[None, None].permute(0, 3, 1, 2)
    ways: list[Callable[[], torch.Tensor]] = [lambda: rows @ matrix]
    if device.type == "cpu":
        ways.append(lambda: torch.nn.functional.conv2d(image, matrix[:, :, None, None]))
    with torch.no_grad():
        for product in ways:
            product()  # the first one sets things up
        times: list[float] = []
        end = time.perf_counter() + seconds
        while not times or time.perf_counter() < end:
            for product in ways:
                started = time.perf_counter()
                result = product()
                float(result[(0,) * result.ndim])
                times.append(time.perf_counter() - started)
    return 2 * PRODUCT_ROWS * PRODUCT_SIZE**2 / min(times)

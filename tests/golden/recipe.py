"""Deterministic weights and inputs for the golden records in this folder.

Every tensor depends only on its name and shape, so a model can be filled, and an input
made, on any machine without a stored checkpoint.
"""

import hashlib

import numpy as np

# Noise-schedule buffers that published checkpoints carry beside the weights: left as the model built them.
SCHEDULE_BUFFERS = frozenset(
    (
        "betas",
        "alphas_cumprod",
        "alphas_cumprod_prev",
        "sqrt_alphas_cumprod",
        "sqrt_one_minus_alphas_cumprod",
        "log_one_minus_alphas_cumprod",
        "sqrt_recip_alphas_cumprod",
        "sqrt_recipm1_alphas_cumprod",
        "posterior_variance",
        "posterior_log_variance_clipped",
        "posterior_mean_coef1",
        "posterior_mean_coef2",
        "logvar",
    )
)


def noise(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal float32 array whose seed is the first 8 bytes of SHA-256(name), little endian."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    return np.random.Generator(np.random.PCG64(seed)).standard_normal(shape).astype(np.float32)


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Value of the parameter `name`: scaled by fan-in, near one for norm weights, small for biases."""
    value = noise(name, shape)
    if len(shape) >= 2:
        return value / np.sqrt(np.prod(shape[1:])).astype(np.float32)
    return 1 + 0.1 * value if name.endswith(".weight") else 0.05 * value


def subsample(array: np.ndarray) -> np.ndarray:
    """What the records keep of an array of more than 4096 values: 2048 of them, evenly spaced in C order."""
    flat = array.reshape(-1)
    if flat.size <= 4096:
        return array
    return flat[np.linspace(0, flat.size - 1, 2048).round().astype(np.int64)]

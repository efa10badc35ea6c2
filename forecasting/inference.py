"""The network run over windows so that each window's numbers depend on nothing but the window.

The last bits of a matrix product depend on its shape, on a row's place in it, and on how many threads share it. Here
the network always runs on batches of one fixed size, each on one thread; several batches run side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch

from forecasting.batches import Windows
from forecasting.model import Network
from forecasting.windows import Ints

Doubles = npt.NDArray[np.float64]

MICRO_BATCH = 16
"""Windows that the network runs on at a time; batches are filled up by repeating the last window."""


def outlooks(network: Network, windows: Callable[[Ints], Windows], count: int) -> tuple[Doubles, Doubles, Doubles]:
    """Logits [count, H, K], remaining life [count] (share of the cap) and embedding [count, E] at the ends of `count`
    windows.

    windows: gives the windows of these numbers out of `count`; called from several threads.
    """
    sizes = network.sizes
    logits, life = np.empty((count, sizes.horizon, sizes.modes)), np.empty(count)
    embedding = np.empty((count, sizes.embedding))

    def run(begin: int) -> None:
        rows = np.minimum(np.arange(begin, begin + MICRO_BATCH, dtype=np.int64), count - 1)
        with torch.inference_mode():
            outlook = network(windows(rows), last=True)
            place = slice(begin, min(begin + MICRO_BATCH, count))
            size = place.stop - begin
            logits[place] = outlook.logits[:size, 0].cpu().numpy()
            life[place] = outlook.rul[:size, 0].cpu().numpy()
            embedding[place] = outlook.embedding[:size, 0].cpu().numpy()

    begins = range(0, count, MICRO_BATCH)
    if next(network.parameters()).device.type != "cpu":
        for begin in begins:
            run(begin)
    elif count:
        # Threads of our own, so that the caller keeps its count. MKL's is the process's and stays at one: setting it
        # back would change it under a forecast that another thread has under way. Training takes back what it needs.
        workers = min(torch.get_num_threads(), len(begins))
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(run, begins))
    return logits, life, embedding

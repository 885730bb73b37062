"""The samples in the global batch of a step: a pure function of (seed, step), so a resume has no state to restore."""

import numpy as np

from vitwarm.errors import UserError
from vitwarm.keys import keyed_rng


class Epochs:
    """An endless sequence of samples: position p belongs to epoch e = p // n and holds sample `perm_e[p % n]`.

    Args:
        size: samples of the data set, n.
        seed: root seed of the run.
        stream: names the random stream of the permutations, one for each epoch.
    """

    def __init__(self, size: int, seed: int, stream: str):
        self.size, self.seed, self.stream = size, seed, stream
        self._orders: dict[int, np.ndarray] = {}

    def order(self, epoch: int) -> np.ndarray:
        """(n,) int64: the samples of an epoch in the order in which it shows them."""
        if epoch not in self._orders:
            # A batch touches the present epoch and the next; older permutations would only hold memory.
            self._orders = {e: order for e, order in self._orders.items() if e >= epoch - 1}
            self._orders[epoch] = keyed_rng(self.seed, self.stream, "order", epoch).permutation(self.size)
        return self._orders[epoch]

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(epochs, samples) at rising positions of the sequence; all (B,) int64."""
        epochs, places = np.divmod(positions, self.size)
        samples = np.empty_like(positions)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            here = epochs == epoch
            samples[here] = self.order(epoch)[places[here]]
        return epochs, samples


class ImageOrder:
    """An infinite stream of image positions, cut into global batches.

    Position p belongs to epoch e = p // n and is image `perm_e[p % n]`, with one keyed permutation per epoch: every
    epoch shows each image once, batches run across epoch ends, and no image is dropped or padded at any batch size.

    With repeated augmentation (Hoffer et al., arXiv 1901.09335), every image of that stream comes `repeats`
    times, each time augmented anew, and batches are cut from the longer stream: as in timm, `n` presentations hold
    `n / repeats` distinct images. Within a batch the first copies come first, then the second ones, each in a keyed
    order, so that copies meet other partners in mixup and fall to other processes.

    Args:
        num_samples: images in the data set.
        global_batch: images a step over all processes.
        seed: root seed of the run.
        ids: (n,) the images to draw from, for training on a subset; None takes all.
        repeats: copies of each image, R.

    Raises:
        UserError: there is nothing to draw from, or the batch is empty.
        ValueError: `ids` names an image twice or one that is not there.
    """

    def __init__(self, num_samples: int, global_batch: int, seed: int, ids: np.ndarray | None = None, repeats: int = 1):
        self.ids = None if ids is None else np.asarray(ids, dtype=np.int64)
        if self.ids is not None and self.ids.size:
            if self.ids.min() < 0 or self.ids.max() >= num_samples:
                raise ValueError(f"ids must lie in [0, {num_samples}), got {self.ids.min()} to {self.ids.max()}")
            if np.unique(self.ids).size != self.ids.size:
                raise ValueError("ids names an image twice")
        self.epoch_size = num_samples if self.ids is None else self.ids.size
        if self.epoch_size < 1:
            raise UserError("there are no images to train on: images.train or its subset is empty")
        if global_batch < 1:
            raise UserError(f"train.global_batch must be at least 1, got {global_batch}")
        self.global_batch, self.repeats = global_batch, repeats
        self.seed = seed
        self._epochs = Epochs(self.epoch_size, seed, "images")

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """The global batch of a step.

        Args:
            step: step of the image stage, from 0.

        Returns:
            epochs: (global_batch,) int64, how often the image was shown before: the epoch, without repeats. An image
                and this number together are shown once, so they key its augmentation.
            samples: (global_batch,) int64, the image.
        """
        positions = np.arange(step * self.global_batch, (step + 1) * self.global_batch, dtype=np.int64)
        draws, copies = np.divmod(positions, self.repeats)
        epochs, samples = self._epochs.at(draws)
        if self.ids is not None:
            samples = self.ids[samples]
        if self.repeats == 1:
            return epochs, samples
        order = keyed_rng(self.seed, "images", "repeat", step).permutation(self.global_batch)
        order = order[np.argsort(copies[order], kind="stable")]
        return (epochs * self.repeats + copies)[order], samples[order]


def rank_slice(global_batch: int, rank: int, world: int) -> slice:
    """The contiguous share of a global batch that one process takes; the shares of all processes are equal.

    Raises:
        UserError: the batch does not divide among the processes.
    """
    if global_batch % world:
        raise UserError(f"a global batch of {global_batch} does not divide among {world} processes; use a multiple")
    share = global_batch // world
    return slice(rank * share, (rank + 1) * share)

"""From images on disk to batches on the device: tar shards, their index and order, decoding, augmentation, mixing."""

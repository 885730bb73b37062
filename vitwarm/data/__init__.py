"""Images on disk to batches on the device: tar shards and their index, their order, decoding, augmentation, mixing."""

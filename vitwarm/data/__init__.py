"""Images on disk to batches on the device: tar shards and their index, the plan, decoding, augmentation, mixing."""

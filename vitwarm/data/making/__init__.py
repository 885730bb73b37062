"""Builds shards: ILSVRC2012 archives, class folders and torchvision's sets become tars, indices and a manifest."""

from vitwarm.data.making.make import Options, make_shards

__all__ = ["Options", "make_shards"]

"""Models in and out of folders: plain timm, GPT-2 of transformers, the Hugging Face Hub."""

from vitwarm.exports.gpt2 import export_gpt2, read_gpt2
from vitwarm.exports.hub import check_push, push_to_hub
from vitwarm.exports.timm_folder import export_model
from vitwarm.exports.write import export, write_model

__all__ = ["check_push", "export", "export_gpt2", "export_model", "push_to_hub", "read_gpt2", "write_model"]

"""What main stages over a decoder share: the model that their data need."""

from typing import Any

from torch import nn

from vitwarm.config import Config
from vitwarm.errors import UserError
from vitwarm.stages.registry import MainStage
from vitwarm.stages.tokens import TokenStage
from vitwarm.training.protocol import B
from vitwarm.trunk import Decoder, configured_decoder


class DecoderStage(TokenStage[B], MainStage[B]):
    """A main stage whose model is a decoder (or a decoder with another head).

    Args:
        config: the recipe.
        vocab_size: V, of the data.
        n_positions: longest sequence of the data.
        val_rows: sequences of one evaluation.
        eval_every: steps between evaluations.
    """

    model: Decoder

    def __init__(self, config: Config, vocab_size: int, n_positions: int, val_rows: int, eval_every: int):
        super().__init__("train", config.train, val_rows, eval_every)
        self.model_config, self.seed = config.model, config.seed
        self.vocab_size, self.n_positions = vocab_size, n_positions

    def fresh_model(self, **decoder_args: Any) -> Decoder:
        """A decoder of the recipe's size that holds the data's vocabulary and longest sequence.

        Args:
            decoder_args: further arguments of `build_decoder`.

        Raises:
            UserError: the recipe's positions are too few.
        """
        positions = self.model_config.decoder.positions or self.n_positions
        if positions < self.n_positions:
            raise UserError(
                f"model.decoder.positions={positions} is too short for sequences of {self.n_positions} tokens; set "
                f"{self.n_positions}"
            )
        sizes = self.vocab_size, positions
        return configured_decoder(self.model_config, *sizes, self.name, seed=self.seed, **decoder_args)

    def bind(self, model: nn.Module) -> None:
        assert isinstance(model, Decoder)
        self.model = model

    def blocks(self) -> list[nn.Module]:
        return self.model.compile_parts()

"""Main stages by name, and what the run, the estimate and the ensemble may ask of one."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from vitwarm.config import Config, ModelConfig
from vitwarm.data.tokenizers import Tokenizer
from vitwarm.training.protocol import B, Stage
from vitwarm.transfer import TransferReport


@dataclass(frozen=True)
class Setup:
    """What a stage may use, and what it may assume.

    Attributes:
        workers: processes that read data.
        estimate: nothing is trained: images that are not here may be assumed, as many as `train_images` says.
    """

    workers: int = 0
    estimate: bool = False
    train_images: int | None = None


class MainStage(Stage[B], Protocol[B]):
    """A stage that a run is for: it has its data from its construction on, and gets its model once, by `bind`.

    Stages derive from this class. What is abstract they must define; the rest is what most of them do.

    Attributes:
        tokenizer: goes into the export; None where there is none.
        class_names: go into the export; None where there are none.
        model_config: section `model` of the recipe, with what the data tell: the number of classes.
        warnings: what may be wrong with the data, a line each.
        sample_unit: what an estimate calls the rate at which data must come.
    """

    tokenizer: Tokenizer | None = None
    class_names: list[str] | None = None
    model_config: ModelConfig
    warnings: list[str] = []
    sample_unit: ClassVar[str] = "sequences/s"

    @abstractmethod
    def fresh_model(self) -> nn.Module:
        """A model that suits the data, with fresh weights: what `bind` takes."""

    @abstractmethod
    def bind(self, model: nn.Module) -> None:
        """Take the model to train; called once, before anything but `fresh_model`.

        Raises:
            UserError: data and model do not suit each other.
        """

    def exported(self, trained: nn.Module) -> nn.Module:
        """The model of `fresh_model` within what the loop has trained."""
        return trained

    def adopt(self, model: nn.Module, tensors: Mapping[str, Tensor], report: TransferReport) -> None:
        """Take more than the groups of a transfer from its one source, and say so in its report."""
        return

    def facts(self) -> dict[str, Any]:
        """What was read, for result.json: JSON-able, by key."""
        return {}

    def data_line(self) -> str | None:
        """What was read, in one line; None where data are computed."""
        return None

    def estimate_facts(self) -> dict[str, str]:
        """What an estimate says of the data: label -> text."""
        return {}

    def data_read(self) -> dict[str, str]:
        """What was read, which must stay as it is while the run lasts: name -> digest (or size); {} where computed."""
        return {}

    def fixed_files(self) -> dict[str, str]:
        """Files of the run folder, name -> text, that must stay as they are while the run lasts."""
        return {}


_MAIN: dict[str, Callable[[Config, Setup], MainStage[Any]]] = {}


def main_stage(name: str) -> Callable[[Callable[[Config, Setup], Any]], Any]:
    """Register a class, or a function that chooses one, as the main stage whose section in the recipe has this name.

    The module must be `vitwarm.stages.NAME`: it is imported when a recipe asks for the stage.
    """

    def register(make: Callable[[Config, Setup], Any]) -> Any:
        _MAIN[name] = make
        return make

    return register


def make_main(name: str, config: Config, setup: Setup) -> MainStage[Any]:
    """The main stage of a recipe, without its model.

    Raises:
        UserError: data, sizes, budget or schedule that cannot be right.
    """
    import_module(f"vitwarm.stages.{name}")
    return _MAIN[name](config, setup)

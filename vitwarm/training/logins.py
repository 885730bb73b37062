"""Whether Weights & Biases would let a run log, asked before anything is trained."""

from vitwarm.config import WandbConfig
from vitwarm.errors import UserError

_WITHOUT_SERVER = ("offline", "dryrun", "disabled")  # modes of wandb: WANDB_MODE, `wandb offline`


def check_wandb_login(settings: WandbConfig) -> None:
    """Refuse a run that is to be tracked where nobody is logged in.

    Raises:
        UserError: no key, one that the server does not know, no network.
    """
    if not settings.project:
        return
    import wandb

    reason = "nobody is logged in"
    try:
        if wandb.setup().settings.mode in _WITHOUT_SERVER or wandb.login(verify=True):
            return
    except Exception as error:  # noqa: BLE001 (no key, no network, no terminal to ask at: theirs to say)
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    raise UserError(
        f"run.wandb={settings.project} needs a login to Weights & Biases: {reason}; do `wandb login`, "
        "set WANDB_MODE=offline, or leave run.wandb out"
    )

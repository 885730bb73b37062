"""What tools/benchmark.py measures, `train` and `lm`, as blocks of a page."""

from typing import Any

from vitwarm.budget.page import Block, Points, Table, Text


def vit_speed(result: dict[str, Any]) -> list[Block]:
    """Of the loop on images and on a warm-up: the arms, their ratios, the kernels."""
    ratios, options = result["ratios"], result["options"]
    share = 100 * result["symbols_ms"] / result["arms"]["warmup"]["step_ms"]
    return [
        *_arms(result, options["model"]),
        Points(
            [
                f"images at {ratios['images_speed_over_bare']:.3f} of the bare loop's speed; "
                f"a token of the warm-up at {ratios['warmup_token_speed_over_images']:.3f} of one of the images",
                f"a batch of symbols takes a core {result['symbols_ms']:.2f} ms to write, "
                f"{share:.3g} % of a warm-up step",
            ]
        ),
        Table(
            ["kernel of the images", "share of the time, %"],
            [[name[:90], f"{100 * share:.1f}"] for name, share in result["profile"].items()],
        ),
    ]


def decoder_speed(result: dict[str, Any]) -> list[Block]:
    """Of the decoder: the arms, and their ratios to ours."""
    options = result["options"]
    said = [
        f"ours at {ratio['median']:.3f} of the speed of {name} (quartiles {ratio['low']:.3f} to {ratio['high']:.3f})"
        for name, ratio in result["ratios"].items()
    ]
    if "nanogpt" not in result["arms"]:
        said.append("nanoGPT left out: no --nanogpt FOLDER, a checkout of karpathy/nanoGPT")
    what = f"decoder {options['size']}, {options['length']} tokens, {options['vocab']} ids"
    return [*_arms(result, what), Points(said)]


def _arms(result: dict[str, Any], what: str) -> list[Block]:
    """What was measured, and on what; then a line for each arm."""
    options = result["options"]
    about = (
        f"{what}, batch {options['batch']}, {options['precision']}, compile={options['compile']}, "
        f"{options['rounds']} rounds of {options['steps']} steps on {result['device']}; "
        f"one large matrix product: {result['matmul_tflops']:.3g} TFLOP/s"
    )
    rows = [
        [
            name,
            f"{arm['step_ms']:.1f}",
            f"{arm['samples_per_s']:,.0f}",
            f"{arm['tokens_per_s']:,.0f}",
            f"{arm['tflops']:.3g}",
            f"{arm['mfu_pct']:.1f}",
            "" if arm["memory_gib"] is None else f"{arm['memory_gib']:.2f}",
        ]
        for name, arm in result["arms"].items()
    ]
    heads = ["arm", "step, ms", "samples/s", "tokens/s", "TFLOP/s", "MFU, % of the product", "memory, GiB"]
    return [Text(about), Table(heads, rows)]

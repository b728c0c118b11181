# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "jax>=0.8",
#     "chex>=0.1.90",
#     "optax>=0.2.6",
#     "numpy>=2.0",
#     "matplotlib>=3.10.8",
# ]
# ///
"""Naive learning: each player follows its own gradient as if the other stood still.

Cooijmans, Aghajohari and Courville (2023), Sec. 2.1. Both players step at once (Eq. 1),

    x(t + 1) = x(t) + lr (d f_1 / d x_1, d f_2 / d x_2)(x(t)).

It is what every other algorithm here is measured against: LOLA with alpha = 0, HOLA(0),
and MeVa with gamma = 0. Ten seconds and five on two cores:

    python naive.py --game ipd
    python naive.py --game logistic

On the IPD everybody defects, at -2 a round. On the Logistic Game players end at
whichever solution is nearest, split along a diagonal through the origin. A run prints a
table and writes results/naive_GAME.npz and figures/naive_GAME.png.
"""

import argparse
import dataclasses
from functools import partial

import jax
import numpy as np

from games import (
    Game,
    evaluate_game,
    find_game,
    make_folders,
    print_settings,
    report,
    run_script,
    simultaneous_gradient,
)


# --- shared: flags (the same lines in every script) ---
def flag(default, description, low=None, high=None, **settings):
    """A field of `Config` that is also a flag, a number from `low` to `high` if given.

    `settings` are argparse's.
    """
    settings = {"type": type(default), "help": f"{description} ({default})"} | settings
    metadata = {"low": low, "high": high, "argparse": settings}
    return dataclasses.field(default=default, metadata=metadata)


def check_settings(config):
    """Raise ValueError, which names the flag, if a value is not one that it takes."""
    for field in dataclasses.fields(config):
        name = field.name.replace("_", "-")
        value = getattr(config, field.name)
        choices = field.metadata["argparse"].get("choices")
        if choices is not None and value not in choices:
            raise ValueError(f"--{name} takes {', '.join(choices)}, not {value}")
        low, high = field.metadata["low"], field.metadata["high"]
        if low is None or value is None:
            continue
        numbers = np.ravel(value)
        if not all(low <= number <= high for number in numbers):
            given = " ".join(str(number) for number in numbers)
            raise ValueError(f"--{name} takes {low} to {high}, not {given}")


# --- end shared -----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of a run. The defaults are for the IPD: see `make_config`."""

    game: str = flag(
        "ipd", "the game, or a variant of it such as ipd+mlp: see games.py"
    )
    seed: int = flag(0, "first random seed", 0, 2**31 - 1)
    num_seeds: int = flag(1, "number of seeds: seed, seed + 1, ...", 1, 1000)
    lr: float = flag(2.0, "step size of the policies", 0, 1e30)
    eval_pairs: int = flag(256, "policy pairs for each seed", 1, 100_000)
    eval_steps: int = flag(500, "steps that policies are followed for", 1, 1_000_000)

    def __post_init__(self):
        check_settings(self)


def make_config(game: str | Game = "ipd", quick: bool = False, **changes) -> Config:
    """The paper's settings for a game, with changes. ValueError if out of range."""
    played = find_game(game)
    settings = {"game": played.name, "lr": played.lr}
    if played.planar:
        settings.update(eval_pairs=32, eval_steps=200)
    if quick:
        settings.update(eval_pairs=16)
    settings.update(changes)
    return Config(**settings)


# --- Naive learning (Eq. 1) -----------------------------------------------------------


def naive_gradient(f, x: jax.Array) -> jax.Array:
    """Naive learning's update direction: row i is the derivative of f_i by x_i.

    `f`, (2, n) -> (2,), is any differentiable game, and x is (2, n). Returns (2, n), in
    units of return per unit of policy parameter.
    """
    return simultaneous_gradient(f, x)


# --- Evaluation -----------------------------------------------------------------------


def evaluate(key: jax.Array, game: Game, config: Config) -> dict[str, jax.Array]:
    """Naive learners. Arrays (1, ...).

    `key` draws the policies that they start from. The arrays are `evaluate_game`'s.
    """

    def step(x, key=None):
        f = game.f if key is None else partial(game.sample, key)
        return x + config.lr * naive_gradient(f, x)

    results = evaluate_game(
        key,
        game,
        step,
        lr=config.lr,
        steps=config.eval_steps,
        pairs=config.eval_pairs,
        draws=game.sample is not None,
    )
    return {name: array[None] for name, array in results.items()}


# --- Command line ---------------------------------------------------------------------


# --- shared: command line (the same lines in every script) ---
def parse_args(argv=None) -> tuple[Config, str]:
    """Settings from the command line, a flag for each field of `Config`; and --out."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        usage=argparse.SUPPRESS,  # so that an error is one line
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--quick", action="store_true", help="a small run")
    parser.add_argument("--out", default=".", help="folder of results/ and figures/")
    for field in dataclasses.fields(Config):
        name = "--" + field.name.replace("_", "-")
        settings = field.metadata["argparse"]
        # Only what is given is a change: defaults depend on the game.
        parser.add_argument(name, default=argparse.SUPPRESS, **settings)
    arguments = vars(parser.parse_args(argv))
    out = arguments.pop("out")
    try:
        config = make_config(**arguments)
        make_folders(out)
    except ValueError as error:
        parser.error(str(error))
    return config, out


# --- end shared -----------------------------------------------------------------------


def main(argv=None):
    config, out = parse_args(argv)
    game = find_game(config.game)
    settings = print_settings(config)

    def run(seed):
        # The first key of a seed is for training, which there is none of here. So all
        # algorithms start from the same policies.
        _, key = jax.random.split(jax.random.key(seed))
        return evaluate(key, game, config)

    seeds = np.arange(config.num_seeds, dtype=np.uint32) + config.seed
    results = jax.jit(jax.vmap(run, out_axes=1))(seeds)  # arrays (1, seed, ...)
    report(
        "naive",
        game,
        settings,
        [config.lr],
        jax.device_get(results),
        symbol="step size lr",
        color="tab:gray",
        out=out,
    )


if __name__ == "__main__":
    run_script(main)

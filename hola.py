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
"""HOLA(n), higher-order LOLA: the opponent, too, looks ahead, one step less far.

Foerster et al. (2018), as in Cooijmans, Aghajohari and Courville (2023), App. B.
HOLA(0) is naive learning, and for the other orders player 1 follows

    g_1^n(x) = d/dx_1 f_1(x_1, x_2 + alpha g_2^(n - 1)(x)),

differentiated through the opponent's step, and player 2 likewise; HOLA(1) is LOLA in
its exact form. Returns over alpha, and the paper's Fig. 2, 20 seconds and 10 on two
cores:

    python hola.py --game ipd
    python hola.py --game logistic

HOLA(2) defects on the IPD (-2) at alpha = 0 and cooperates around alpha = 10, as LOLA
does, but a best response exploits it. On the Logistic Game the basin of B, the better
solution, grows around the edges, to 56 % of the grid, and from alpha = 10 on policies
fly off from around the origin. A run prints a table and writes results/hola_GAME.npz
and figures/hola_GAME.png.
"""

import argparse
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from games import (
    GAMES,
    Game,
    checked_policies,
    checked_returns,
    evaluate_game,
    find_game,
    make_folders,
    print_settings,
    report,
    run_script,
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
    alphas: tuple = flag(
        GAMES["ipd"].alphas, "look-ahead step sizes", 0, 1e30, type=float, nargs="+"
    )
    order: int = flag(2, "n of HOLA(n); each takes three times as long", 0, 5)
    eval_pairs: int = flag(256, "policy pairs for each alpha and seed", 1, 100_000)
    eval_steps: int = flag(500, "steps that policies are followed for", 1, 1_000_000)

    def __post_init__(self):
        check_settings(self)


def make_config(game: str | Game = "ipd", quick: bool = False, **changes) -> Config:
    """The paper's settings for a game, with changes. ValueError if out of range."""
    played = find_game(game)
    if played.sample is not None:
        raise ValueError(f"hola.py needs exact returns, not those of {played.name}")
    settings = {"game": played.name, "lr": played.lr, "alphas": played.alphas}
    if played.planar:
        settings.update(eval_pairs=32, eval_steps=200)
    if quick:
        settings.update(eval_pairs=16)
    settings.update(changes)
    settings["alphas"] = tuple(settings["alphas"])
    return Config(**settings)


# --- HOLA: what a player ascends (App. B) ---------------------------------------------


def hola_row(f_own, f_other, own, other, alpha, order: int) -> jax.Array:
    """One player's update direction by HOLA(order). (n,).

    Payoffs take one's own parameters first: f_own(own, other), f_other(other, own).
    """

    def surrogate(own):
        if order == 0:
            return f_own(own, other)
        step = alpha * hola_row(f_other, f_own, other, own, alpha, order - 1)
        return f_own(own, other + step)

    return jax.grad(surrogate)(own)


def hola_gradient(f, x: jax.Array, alpha, order: int) -> jax.Array:
    """HOLA(n)'s update direction (App. B).

    Args:
      f: differentiable game, (2, n) -> (2,), the returns of both players.
      x: joint policy, (2, n).
      alpha: look-ahead step, (), or one for each player, (2,): player i's at all levels
        of row i.
      order: the n of HOLA(n). 0 is naive learning, 1 exact LOLA.

    Returns:
      (2, n), in units of return per unit of policy parameter. Row i is the derivative
      of player i's surrogate by x_i.
    """
    x = checked_policies(x)
    f = checked_returns(f)
    alpha_1, alpha_2 = jnp.broadcast_to(jnp.asarray(alpha, x.dtype), 2)

    def f_1(own, other):
        return f(jnp.stack([own, other]))[0]

    def f_2(own, other):
        return f(jnp.stack([other, own]))[1]

    row_1 = hola_row(f_1, f_2, x[0], x[1], alpha_1, order)
    row_2 = hola_row(f_2, f_1, x[1], x[0], alpha_2, order)
    return jnp.stack([row_1, row_2])


# --- Evaluation -----------------------------------------------------------------------


def evaluate(key: jax.Array, game: Game, config: Config) -> dict[str, jax.Array]:
    """HOLA's agents at every alpha (Fig. 2). Arrays (alpha, ...).

    `key` draws the policies that they start from. The arrays are `evaluate_game`'s.
    """

    def evaluate_at(alpha):
        def step(x):
            return x + config.lr * hola_gradient(game.f, x, alpha, config.order)

        return evaluate_game(
            key,
            game,
            step,
            lr=config.lr,
            steps=config.eval_steps,
            pairs=config.eval_pairs,
        )

    return jax.vmap(evaluate_at)(jnp.array(config.alphas))


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
    results = jax.jit(jax.vmap(run, out_axes=1))(seeds)  # arrays (alpha, seed, ...)
    report(
        "hola",
        game,
        settings,
        config.alphas,
        jax.device_get(results),
        symbol=r"look-ahead step $\alpha$",
        color="tab:green",
        out=out,
    )


if __name__ == "__main__":
    run_script(main)

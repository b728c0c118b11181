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
"""LOLA: ascend the return that follows the opponent's next learning step.

Foerster et al. (2018), Learning with Opponent-Learning Awareness, in the exact form of
Cooijmans, Aghajohari and Courville (2023), App. B. Player 1 imagines one naive step of
its opponent, and differentiates through it:

    d/dx_1 f_1(x_1, x_2 + alpha d/dx_2 f_2(x_1, x_2))

and player 2 likewise.

    python lola.py --game ipd          the paper's Fig. 3b, 15 seconds on two cores
    python lola.py --game logistic     LOLA in the paper's Fig. 2, 5 seconds

This exact form is the default. Foerster et al.'s is `--variant taylor-stop`; `joint`
is the paper's Eq. 2, in which player 1 imagines a naive step of its own as well, as in
Meta-MAPG (Kim et al., 2021). At alpha = 10 its agents cooperate less on the IPD, -1.4,
and a best response gets less than they do. On the Logistic Game they stop elsewhere.

On the IPD both players defect at alpha = 0, a return of -2 each. Around alpha = 10 they
cooperate, and get -1.2; two players who always cooperate get -1. A best response to
these agents, which a run computes, gets no more than they do. With a larger alpha
returns fall again. On the Logistic Game the share of starting points that lead to B,
the better of its two stable solutions, rises from a half at alpha = 0 to .605 at 20.

Returns of iterated games are multiplied by 1 - discount here, which is .04 on the IPD.
Where code does not do so, its alpha and lr of 1 are 1 / .04 = 25 here. A run prints a
table and writes results/lola_GAME.npz and figures/lola_GAME.png.
"""

import argparse
import dataclasses
from functools import partial

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
    variant: str = flag(
        "exact",
        "form of the surrogate",
        choices=["exact", "lookahead", "taylor", "taylor-stop", "joint"],
    )
    lookahead: int = flag(1, "how many steps of the opponent are imagined", 1, 20)
    eval_pairs: int = flag(256, "policy pairs for each alpha and seed", 1, 100_000)
    eval_steps: int = flag(500, "steps that policies are followed for", 1, 1_000_000)

    def __post_init__(self):
        check_settings(self)
        if self.variant == "joint" and self.lookahead > 1:
            raise ValueError("--variant joint takes --lookahead 1 beside it")


def make_config(game: str | Game = "ipd", quick: bool = False, **changes) -> Config:
    """The paper's settings for a game, with changes. ValueError if out of range."""
    played = find_game(game)
    settings = {"game": played.name, "lr": played.lr, "alphas": played.alphas}
    if played.planar:
        settings.update(eval_pairs=32, eval_steps=200)
    if quick:
        settings.update(eval_pairs=16)
    settings.update(changes)
    settings["alphas"] = tuple(settings["alphas"])
    return Config(**settings)


# --- LOLA: what a player ascends (App. B) ---------------------------------------------
#
# A surrogate is the number whose gradient by `own` a player follows. Payoffs take one's
# own parameters first: f_own(own, other), f_other(other, own).
# `change` is what the opponent's imagined steps add to its parameters. It depends on
# `own`, and all forms but LookAhead differentiate through it.


def imagined_change(f_other, own, other, alpha, steps: int) -> jax.Array:
    """The sum of the opponent's next naive steps, with `own` held fixed. (n,)."""
    change = jnp.zeros_like(other)
    for _ in range(steps):
        change = change + alpha * jax.grad(f_other)(other + change, own)
    return change


def exact(f_own, own, other, change):
    """My return after the opponent's change, which is a function of my policy."""
    return f_own(own, other + change)


def lookahead_only(f_own, own, other, change):
    """As `exact`, with the change held constant: LookAhead (Zhang and Lesser, 2010)."""
    return f_own(own, other + jax.lax.stop_gradient(change))


def taylor(f_own, own, other, change):
    """`exact` to first order in the change."""
    slope = jax.grad(f_own, argnums=1)(own, other)
    return f_own(own, other) + (slope * change).sum()


def taylor_stop(f_own, own, other, change):
    """As `taylor`, with the slope held constant: LOLA as published."""
    slope = jax.grad(f_own, argnums=1)(own, other)
    return f_own(own, other) + (jax.lax.stop_gradient(slope) * change).sum()


# A surrogate of your own goes here, and its name to the choices in `Config`.
SURROGATES = {
    "exact": exact,
    "lookahead": lookahead_only,
    "taylor": taylor,
    "taylor-stop": taylor_stop,
    "joint": exact,  # after a step of one's own: see `lola_gradient`
}


def payoff_1(f):
    """Player 1's return, as a function of x_1 (`own`) and x_2."""
    return lambda own, other: f(jnp.stack([own, other]))[0]


def payoff_2(f):
    """Player 2's return, as a function of x_2 (`own`) and x_1."""
    return lambda own, other: f(jnp.stack([other, own]))[1]


def lola_gradient(
    f, x: jax.Array, alpha, variant: str = "exact", f_ahead=None, lookahead: int = 1
) -> jax.Array:
    """LOLA's update direction (App. B), or that of another variant.

    Args:
      f: differentiable game, (2, n) -> (2,), the returns of both players.
      x: joint policy, (2, n).
      alpha: look-ahead step, (), or one for each player, (2,). At 0 all forms are the
        naive gradient.
      variant: a key of `SURROGATES`; ValueError if it is none.
      f_ahead: what the opponent is imagined to ascend, f itself if None. Where f is an
        estimate, a second, independent one: with one imagined step, the gradients of
        `taylor` and `taylor-stop` are then unbiased estimates of their exact ones. The
        others are biased, as f is not linear in the parameters.
      lookahead: how many steps of the opponent are imagined. One in `joint`.

    Returns:
      (2, n), in units of return per unit of policy parameter. Row i is the derivative
      of player i's surrogate with respect to x_i.
    """
    x = checked_policies(x)
    f = checked_returns(f)
    alpha_1, alpha_2 = jnp.broadcast_to(jnp.asarray(alpha, x.dtype), 2)
    if variant not in SURROGATES:
        raise ValueError(f"variant is one of {', '.join(SURROGATES)}, not {variant}")
    if variant == "joint" and lookahead > 1:
        raise ValueError("joint takes one look-ahead step")
    surrogate = SURROGATES[variant]
    f_ahead = f if f_ahead is None else checked_returns(f_ahead)

    def surrogate_1(own):
        change = imagined_change(payoff_2(f_ahead), own, x[1], alpha_1, lookahead)
        if variant == "joint":  # one's own naive step is imagined as well (Eq. 2)
            own = own + alpha_1 * jax.grad(payoff_1(f_ahead))(own, x[1])
        return surrogate(payoff_1(f), own, x[1], change)

    def surrogate_2(own):
        change = imagined_change(payoff_1(f_ahead), own, x[0], alpha_2, lookahead)
        if variant == "joint":
            own = own + alpha_2 * jax.grad(payoff_2(f_ahead))(own, x[0])
        return surrogate(payoff_2(f), own, x[0], change)

    return jnp.stack([jax.grad(surrogate_1)(x[0]), jax.grad(surrogate_2)(x[1])])


# --- Evaluation -----------------------------------------------------------------------


def make_step(game: Game, config: Config, alpha):
    """LOLA's rule: step(x) -> the next x; step(x, key) where returns are sampled."""

    def step(x):
        gradient = lola_gradient(
            game.f, x, alpha, config.variant, lookahead=config.lookahead
        )
        return x + config.lr * gradient

    def sampled_step(x, key):
        key_now, key_ahead = jax.random.split(key)
        f = partial(game.sample, key_now)
        f_ahead = partial(game.sample, key_ahead)
        gradient = lola_gradient(f, x, alpha, config.variant, f_ahead, config.lookahead)
        return x + config.lr * gradient

    return step if game.sample is None else sampled_step


def evaluate(key: jax.Array, game: Game, config: Config) -> dict[str, jax.Array]:
    """LOLA's agents at every alpha (Figs. 2, 3b). Arrays (alpha, ...).

    `key` draws the policies that they start from, the same for all alphas. The arrays
    are those of `evaluate_game`.
    """

    def evaluate_at(alpha):
        return evaluate_game(
            key,
            game,
            make_step(game, config, alpha),
            lr=config.lr,
            steps=config.eval_steps,
            pairs=config.eval_pairs,
            draws=game.sample is not None,
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
        "lola",
        game,
        settings,
        config.alphas,
        jax.device_get(results),
        symbol=r"look-ahead step $\alpha$",
        color="tab:orange",
        out=out,
    )


if __name__ == "__main__":
    run_script(main)

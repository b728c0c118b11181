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
"""POLA, proximal LOLA: the best policy nearby, given the opponent's next step.

Zhao, Lu, Grosse and Foerster (2022), Proximal Learning With Opponent-Learning
Awareness, in the form that they call outer POLA, with exact returns. Player 1's new
policy maximises over y_1

    f_1(y_1, x_2 + alpha d/dx_2 f_2(y_1, x_2)) - beta D(x_1, y_1),

and player 2's likewise. D(x_1, y_1) is the sum over observations of KL(policy of x_1 ||
policy of y_1). LOLA takes one gradient step on the first term, and how far it goes is
measured in parameters. Here policies climb to the top of the whole, and how far they go
is measured by D, in what they do. So where there is one top, and the climb gets there,
player 1's new policy does not depend on how it is parametrised. (It does on how player
2 is, whose imagined step is naive. In full POLA that is proximal, too.)

The first command takes half a minute; in the second pairs find tit-for-tat:

    python pola.py --game ipd --quick
    python pola.py --game contribution --alphas 50 100 125 --eval-steps 10

On the IPD everybody defects (-2) up to alpha = 2, and cooperates most around 30
(-1.44). In the contribution game, with alpha = 125, almost all pairs of tables play
tit-for-tat after two steps, and keep it. With `--game contribution+mlp --alphas 6.25
--beta .0052` four of five pairs of networks do; after the next step they do not.

The settings of the second command are those of the authors' code, github.com/
Silent-Zebra/POLA. Returns are not multiplied by 1 - discount there: at .96 alpha here
is 25 times theirs, and beta theirs over 25.

A run writes results/pola_GAME.npz and figures/pola_GAME.png.
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
    lr: float = flag(20.0, "step size of the naive learners beside POLA", 0, 1e30)
    alphas: tuple = flag(
        GAMES["ipd"].alphas, "imagined steps", 0, 1e30, type=float, nargs="+"
    )
    beta: float = flag(0.004, "price of a unit of divergence", 0, 1e30)
    climb_steps: int = flag(1000, "gradients of a climb, at most", 2, 10_000_000)
    climb_tolerance: float = flag(
        3e-4, "a climb ends before a shorter step: see `climb`", 0, 1e30
    )
    eval_pairs: int = flag(64, "policy pairs for each alpha and seed", 1, 100_000)
    eval_steps: int = flag(20, "steps that policies are followed for", 1, 1_000_000)

    def __post_init__(self):
        check_settings(self)


def make_config(game: str | Game = "ipd", quick: bool = False, **changes) -> Config:
    """The settings for a game, with changes. ValueError if one is out of range."""
    played = find_game(game)
    if played.sample is not None:
        raise ValueError(f"pola.py needs exact returns, not those of {played.name}")
    # POLA's steps are long and few, and so are those of learners beside it.
    settings = {"game": played.name, "lr": 10 * played.lr, "alphas": played.alphas}
    if played.planar:
        # With this price, where D is half a squared distance, small steps are those of
        # LOLA with the game's lr.
        settings.update(lr=played.lr, beta=1 / played.lr, eval_pairs=32, eval_steps=200)
    if quick:
        settings.update(eval_pairs=16)
    settings.update(changes)
    settings["alphas"] = tuple(settings["alphas"])
    return Config(**settings)


# --- POLA: the best policy nearby -----------------------------------------------------


def divergence(game: Game, x: jax.Array, y: jax.Array) -> jax.Array:
    """How far each player's new policy y is from its old one x. (2, n), (2, n) -> (2,).

    Where policies are log-odds, the sum over observations of KL(old || new), in nats,
    as in the authors' code. Where they are not, as on the Logistic Game, half of the
    squared distance.
    """
    if game.log_odds is None:
        return ((y - x) ** 2).sum(axis=1) / 2
    old, new = game.log_odds(x), game.log_odds(y)
    # KL(p || q) = p (logit p - logit q) + log(1 - p) - log(1 - q), with p the old
    # chance of C, q the new one, and log(1 - p) = -softplus(logit p).
    kl = jax.nn.sigmoid(old) * (old - new) + jax.nn.softplus(new) - jax.nn.softplus(old)
    return kl.sum(axis=1)


def pola_objective(f, x: jax.Array, i: int, own: jax.Array, alpha, beta, distance):
    """What player i's new policy y_i = `own`, (n,), is to maximise. (), a return.

        f_i(y_i, x_j + alpha d f_j / d x_j (y_i, x_j)) - beta D(x_i, y_i)

    with j the other player. The first term is that of exact LOLA: y_i acts on it
    through j's step as well. Arguments are those of `pola_step`.
    """
    j = 1 - i
    joint = x.at[i].set(own)

    def return_of_j(other):
        return f(joint.at[j].set(other))[j]

    imagined = joint.at[j].add(alpha * jax.grad(return_of_j)(joint[j]))
    return f(imagined)[i] - beta * distance(x, joint)[i]


DAMPING = 1e-4  # see `natural_gradient`


def natural_gradient(distance, x: jax.Array, slope: jax.Array) -> jax.Array:
    """The direction that gains most for a short distance (Amari, 1998). (n,).

        (H + DAMPING)^-1 slope, with H the Hessian of distance(x, y) by y, at y = x

    For tables H has p (1 - p) on its diagonal, p the chances of C, and is 0 elsewhere.
    The damping keeps steps finite where p is 0 or 1. The equation is solved by conjugate
    gradients, without the matrix. Five iterations do where policies see one round: they
    have five observations, so that H has rank 5 at most, also of networks. Policies
    that see more rounds get an approximation, which still leads uphill.
    """

    def product(vector):  # (H + DAMPING) vector
        gradient = jax.grad(lambda y: distance(x, y))
        return jax.jvp(gradient, (x,), (vector,))[1] + DAMPING * vector

    return jax.scipy.sparse.linalg.cg(product, slope, maxiter=5)[0]


def climb(objective, distance, start: jax.Array, steps: int, tolerance) -> jax.Array:
    """Ascent by natural gradients from `start`, (n,), to a top of the objective. (n,).

    If a step leads to where the slope points back, against the step, it has passed a
    top. It is not taken, and the next is half as long. Otherwise it is taken, and the
    next is twice as long. So no step size needs to be found. Values are not compared:
    near a top they differ by less than rounding. (Zhao et al. follow plain gradients
    with fixed step sizes. Where policies are almost certain or skewed that takes
    thousands of gradients; here some hundred do.)

    Args:
      objective: what is to be maximised, (n,) -> ().
      distance: of one's own policies, old and new, (n,), (n,) -> ().
      steps: it ends after so many gradients. The first is that at the start.
      tolerance: it ends before a step shorter than this. The length of a step is
        about the square root of twice its distance.
    """

    def goes_on(state):
        _, slope, direction, size, count = state
        length = size * jnp.sqrt((direction * slope).sum())
        return (count == 0) | ((count < steps) & (length > tolerance))

    def move(state):
        x, slope, direction, size, count = state
        ahead = x + size * direction
        slope_ahead = jax.grad(objective)(ahead)
        onward = (direction * slope_ahead).sum() >= 0  # False if the slope is NaN
        x = jnp.where(onward, ahead, x)
        slope = jnp.where(onward, slope_ahead, slope)
        direction = natural_gradient(distance, x, slope)
        size = jnp.where(onward, 2 * size, size / 2)
        return x, slope, direction, size, count + 1

    # The first move goes nowhere and finds the slope there.
    nowhere = jnp.zeros_like(start)
    state = (start, nowhere, nowhere, jnp.array(0.5, start.dtype), 0)
    return jax.lax.while_loop(goes_on, move, state)[0]


def pola_step(
    f, x: jax.Array, alpha, beta, distance, steps: int = 1000, tolerance: float = 3e-4
) -> jax.Array:
    """The policies that follow x: row i climbs from x_i to a top of `pola_objective`.

    Args:
      f: differentiable game, (2, n) -> (2,), the returns of both players.
      x: joint policy, (2, n).
      alpha: imagined step of the opponent, (), or one for each player, (2,): i's for
        row i. At 0 the other stays.
      beta: price of a unit of distance, in units of return. The larger it is, the
        smaller are steps.
      distance: D, from x to other joint policies, (2, n), (2, n) -> (2,), such as
        `partial(divergence, game)`. Twice differentiable, and least where they are
        equal.
      steps, tolerance: when to stop, see `climb`.

    Returns:
      (2, n), the new joint policy, not a direction. Not differentiable in reverse.
    """
    x = checked_policies(x)
    f = checked_returns(f)
    alphas = jnp.broadcast_to(jnp.asarray(alpha, x.dtype), 2)

    def next_policy(i):
        def objective(own):
            return pola_objective(f, x, i, own, alphas[i], beta, distance)

        def own_distance(old, new):
            return distance(x.at[i].set(old), x.at[i].set(new))[i]

        return climb(objective, own_distance, x[i], steps, tolerance)

    return jnp.stack([next_policy(0), next_policy(1)])


# --- Evaluation -----------------------------------------------------------------------


def evaluate(key: jax.Array, game: Game, config: Config) -> dict[str, jax.Array]:
    """POLA's agents at every alpha. Arrays (alpha, ...).

    `key` draws the policies that they start from. The arrays are `evaluate_game`'s.
    """

    def evaluate_at(alpha):
        def step(x):
            return pola_step(
                game.f,
                x,
                alpha,
                config.beta,
                partial(divergence, game),
                config.climb_steps,
                config.climb_tolerance,
            )

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
        "pola",
        game,
        settings,
        config.alphas,
        jax.device_get(results),
        symbol=r"look-ahead step $\alpha$",
        color="tab:olive",
        out=out,
    )


if __name__ == "__main__":
    run_script(main)

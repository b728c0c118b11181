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
"""SOS, stable opponent shaping: LOLA, less of it where it turns against LookAhead.

Letcher et al. (2019), Stable Opponent Shaping in Differentiable Games. Player i has
parameters x_i and the return f_i(x_1, x_2). Let g_i be the derivative of f_i by x_i,
and H the Jacobian of g = (g_1, g_2), with blocks H_ij = dg_i/dx_j. Players ascend

    g + alpha H_o g + p alpha chi,    chi_i = H_ji^T df_i/dx_j, j the other player,

where H_o is H with zeros for the blocks H_11 and H_22. With p = 0 this is LookAhead,
with p = 1 LOLA (`lola.py --variant taylor`). SOS takes the p of their Algorithm 1. They
show, for a small alpha, that it converges locally to stable fixed points (Thm. 4), that
it converges to nothing but fixed points (Prop. 5), and that it almost surely avoids
strict saddles (Thm. 6). `--variant` has related methods. One of them, `stackelberg`, is
not the same in both seats: player 1 leads.

    python sos.py --game ipd        20 seconds on two cores
    python sos.py --game tandem     10 seconds

On the IPD both players defect at alpha = 0, a return of -2 each. They cooperate more
the larger alpha is: -1.44 at 10, -1.22 at 100. Best responses, which a run computes,
get more than they do. On Tandem, at the default alphas, LOLA's players push on to where
both lose. SOS's players stop where naive learners stop.

Two differences to their text and code. They minimise losses L = -f: their xi is our -g,
and their H is our -H. And we multiply returns by 1 - discount; they do not. On the IPD
it is .04, so their alpha or lr of 1 is 1 / .04 = 25 here. See `sos_gradient` for the
constants that depend on it. A run prints a table and writes results/sos_GAME.npz and
figures/sos_GAME.png.
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
    alphas: tuple = flag(
        GAMES["ipd"].alphas, "look-ahead step sizes", 0, 1e30, type=float, nargs="+"
    )
    variant: str = flag(
        "sos",
        "which of the family",
        choices=[
            "sos",
            "lookahead",
            "consensus",
            "sga",
            "extragradient",
            "cgd",
            "lss",
            "stackelberg",
        ],
    )
    eval_pairs: int = flag(256, "policy pairs for each alpha and seed", 1, 100_000)
    eval_steps: int = flag(500, "steps that policies are followed for", 1, 1_000_000)

    def __post_init__(self):
        check_settings(self)


def make_config(game: str | Game = "ipd", quick: bool = False, **changes) -> Config:
    """The settings for a game, with changes. ValueError if out of range."""
    played = find_game(game)
    if played.sample is not None:
        raise ValueError(f"sos.py needs exact returns, not those of {played.name}")
    settings = {"game": played.name, "lr": played.lr, "alphas": played.alphas}
    if played.planar:
        settings.update(eval_pairs=32, eval_steps=200)
    if quick:
        settings.update(eval_pairs=16)
    settings.update(changes)
    settings["alphas"] = tuple(settings["alphas"])
    return Config(**settings)


# --- SOS and its family ---------------------------------------------------------------
#
# Each function returns what players ascend, (2, n). alpha is (2, 1): row i is that of
# player i, and belongs to row i of the result.


def linearise(f, x):
    """At x, g and the functions v -> H v and v -> H^T v, with H the Jacobian of g."""
    g, times = jax.linearize(partial(simultaneous_gradient, f), x)
    transpose = jax.linear_transpose(times, x)

    def transposed_times(v):
        return transpose(v)[0]

    return g, times, transposed_times


def off_diagonal(times, v) -> jax.Array:
    """H_o v where `times` is v -> H v, and H_o^T v where it is v -> H^T v. (2, n)."""
    row_1 = times(v.at[0].set(0))[0]  # H_12 v_2, or H_21^T v_2
    row_2 = times(v.at[1].set(0))[1]  # H_21 v_1, or H_12^T v_1
    return jnp.stack([row_1, row_2])


def lookahead(f, x, alpha):
    """g + alpha H_o g: LookAhead to first order in alpha (Zhang and Lesser, 2010)."""
    g, times, _ = linearise(f, x)
    return g + alpha * off_diagonal(times, g)


def sos(f, x, alpha):
    """g + alpha H_o g + p alpha chi (Letcher et al., 2019)."""
    g, times, transposed_times = linearise(f, x)
    # The simultaneous gradient of (f_2, f_1): rows are df_2/dx_1 and df_1/dx_2.
    influence = simultaneous_gradient(lambda x: f(x)[::-1], x)
    chi = off_diagonal(transposed_times, influence)
    plain = g + alpha * off_diagonal(times, g)
    p = sos_p(g, plain, alpha * chi)
    return plain + p * alpha * chi


def sos_p(g, plain, shaping, a: float = 0.5, b: float = 0.1) -> jax.Array:
    """The p of Algorithm 1, (): how much of LOLA's `shaping` is added to LookAhead.

    `plain` is LookAhead's direction. The first criterion keeps <plain + p shaping,
    plain> >= (1 - a) |plain|^2. The second makes p vanish near fixed points, where
    g = 0; as in their algorithm it jumps at |g| = b. There is one p for both players:
    all arguments are (2, n), and products are those of 2 n numbers.
    """
    along = (shaping * plain).sum()
    turns_back = along < 0
    divisor = jnp.where(turns_back, along, 1)  # never 0, so derivatives are finite
    p_1 = jnp.where(turns_back, jnp.minimum(1, -a * (plain**2).sum() / divisor), 1)
    squared = (g**2).sum()
    p_2 = jnp.where(squared < b**2, squared, 1)
    return jnp.minimum(p_1, p_2)


def consensus(f, x, alpha):
    """g - alpha H^T g: consensus optimisation (Mescheder et al., 2017)."""
    g, _, transposed_times = linearise(f, x)
    return g - alpha * transposed_times(g)


def sga(f, x, alpha):
    """Symplectic gradient adjustment (Balduzzi et al., 2018).

    g - s alpha adjustment, with adjustment = (H^T g - H g) / 2, and s = 1 or -1 the
    sign of (<-g, H^T g> <adjustment, H^T g> / (2 n)) + .1. By their offset of .1, s is
    1 where the product is 0.
    """
    g, times, transposed_times = linearise(f, x)
    slope = transposed_times(g)  # of |g|^2 / 2
    adjustment = (slope - times(g)) / 2
    aligned = -(g * slope).sum() * (adjustment * slope).sum() / x.size
    return g - alpha * jnp.sign(aligned + 0.1) * adjustment


def extragradient(f, x, alpha):
    """g(x + alpha g) (Korpelevich, 1976)."""
    return simultaneous_gradient(f, x + alpha * simultaneous_gradient(f, x))


def jacobian(f, x) -> jax.Array:
    """H as a matrix, (2 n, 2 n), in float32 at least."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    blocks = jax.jacobian(partial(simultaneous_gradient, f))(x)  # (2, n, 2, n)
    return blocks.reshape(x.size, x.size)


def cgd(f, x, alpha):
    """(I - alpha H_o)^-1 g: competitive gradient descent.

    Schaefer and Anandkumar (2019). At a large alpha the matrix can be singular.
    """
    g = simultaneous_gradient(f, x)
    player = np.repeat([0, 1], x.shape[1])
    H = jacobian(f, x)
    H_o = jnp.where(player[:, None] == player, 0, H)
    alpha_of_row = jnp.broadcast_to(alpha, x.shape).reshape(-1, 1)
    system = jnp.eye(x.size, dtype=H.dtype) - alpha_of_row * H_o
    direction = jnp.linalg.solve(system, g.ravel().astype(H.dtype))
    return direction.reshape(x.shape).astype(x.dtype)


def lss(f, x, alpha):
    """g + H^T H^-1 g: local symplectic surgery (Mazumdar et al., 2019); no alpha.

    Their update, for zero-sum games, is half of this sum, with a regularised inverse.
    Here the half is left out, and the inverse is the pseudo-inverse.
    """
    g, _, transposed_times = linearise(f, x)
    inverse = jnp.linalg.pinv(jacobian(f, x), rtol=1e-5)
    # A sum, not a product of matrices, whose factors a GPU rounds to 10 bits.
    solution = (inverse * g.ravel()).sum(axis=1).reshape(x.shape).astype(x.dtype)
    return g + transposed_times(solution)


def stackelberg(f, x, alpha):
    """(g_1 - H_21^T H_22^-1 df_1/dx_2, g_2): player 1 leads; no alpha.

    Fiez, Chasnov and Ratliff (2020), Implicit Learning Dynamics in Stackelberg Games.
    The best answer to x_1 changes with x_1 by -H_22^-1 H_21. If x_2 is that answer, row
    1 is the derivative of f_1 with the answer's change. Player 2 learns naively.

    H_22 should be negative definite. Where it has positive eigenvalues the formula is
    the same, but what the leader expects is not a best answer. The inverse is the
    pseudo-inverse: where H_22 = 0 the leader is naive, and a parameter that f ignores
    changes nothing. Near a singular H_22 its steps can be very long. In their code for
    networks a multiple of I is added to H_22.
    """
    n = x.shape[1]
    H = jacobian(f, x)
    inverse = jnp.linalg.pinv(H[n:, n:], rtol=1e-5)
    # The simultaneous gradient of (f_2, f_1): rows are df_2/dx_1 and df_1/dx_2.
    influence = simultaneous_gradient(lambda x: f(x)[::-1], x)
    # Sums, not products of matrices, whose factors a GPU rounds to 10 bits.
    solution = (inverse * influence[1]).sum(axis=1)
    expected = -(H[n:, :n] * solution[:, None]).sum(axis=0)
    g = simultaneous_gradient(f, x)
    return g.at[0].add(expected.astype(x.dtype))


VARIANTS = {
    "sos": sos,
    "lookahead": lookahead,
    "consensus": consensus,
    "sga": sga,
    "extragradient": extragradient,
    "cgd": cgd,
    "lss": lss,
    "stackelberg": stackelberg,
}


def sos_gradient(
    f, x: jax.Array, alpha, variant: str = "sos", scale: float = 1.0
) -> jax.Array:
    """The update direction of SOS (Letcher et al., 2019), and those of its family.

    Args:
      f: differentiable game, (2, n) -> (2,), the returns of both players.
      x: joint policy, (2, n).
      alpha: look-ahead step, (), or one for each player, (2,). For consensus it is that
        paper's gamma, for SGA its lambda; in published code they are 1, which is 25
        here on the IPD. At 0 all but LSS and Stackelberg's are the naive gradient.
      variant: a key of `VARIANTS`; ValueError if it is none.
      scale: SOS's b and SGA's offset are absolute numbers, meant for returns that are
        not normalised. With scale = 1 / (1 - discount) they are compared with
        the gradients of F = scale f. alpha stays that of f.

    Returns:
      (2, n), in units of return per unit of policy parameter.
    """
    x = checked_policies(x)
    f = checked_returns(f)
    if variant not in VARIANTS:
        raise ValueError(f"variant is one of {', '.join(VARIANTS)}, not {variant}")

    def F(x):
        return scale * f(x)

    # alpha / scale times a gradient of F is alpha times that of f.
    alpha = jnp.broadcast_to(jnp.asarray(alpha, x.dtype), 2)[:, None] / scale
    return VARIANTS[variant](F, x, alpha) / scale


# --- Evaluation -----------------------------------------------------------------------


def evaluate(key: jax.Array, game: Game, config: Config) -> dict[str, jax.Array]:
    """SOS's agents at every alpha. Arrays (alpha, ...).

    `key` draws the policies that they start from. The arrays are `evaluate_game`'s.
    """
    scale = 1.0
    if game.iterated:
        scale = 1 / (1 - game.rules.discount)

    def evaluate_at(alpha):
        def step(x):
            gradient = sos_gradient(game.f, x, alpha, config.variant, scale)
            return x + config.lr * gradient

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
        "sos",
        game,
        settings,
        config.alphas,
        jax.device_get(results),
        symbol=r"look-ahead step $\alpha$",
        color="tab:brown",
        out=out,
    )


if __name__ == "__main__":
    run_script(main)

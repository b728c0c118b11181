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
"""LOQA: shape an opponent that prefers actions by their values; Advantage Alignment.

Aghajohari et al. (2024), LOQA: Learning with Opponent Q-Learning Awareness, in exact
form. Player i does not ask how its opponent j learns. It assumes that j plays a softmax
of action values,

    model of j:  m(b | s) = exp(beta Q_j(s, b)) / sum over b' of exp(beta Q_j(s, b')),

where s is what i has seen of the rounds before, b an action of j, and Q_j(s, b) the
discounted sum of j's rewards if it does b now and both then play their policies. By its
own policy i acts on Q_j, and so on what j prefers. Player i follows

    g_i + (1 - discount) mean of
        sum over t of discount^t A_i(s_t, b_t) d/dx_i log m(b_t | s_t)

with g_i the derivative of f_i by x_i, and A_i(s, b) the advantage for i if j does b:
its value less the mean value over j's actions. The mean is over games between both
players' real policies: the model is only differentiated. With beta = 0 this is naive
learning. `--variant` takes

    loqa        LOQA as published: in m only the value of the action b that was taken
                depends on x_i. The other value is held constant, and so the derivative
                of log m has a factor 1 - m(b | s).
    full        Both values depend on x_i. Then there is no such factor in the mean.
    alignment   Advantage Alignment (Duque et al., 2024), which begins with the same
                model and ends without it: the policy gradient, in which the advantage
                A_i(s_t, a_t, b_t) becomes

                A_i(t) + beta (sum over k < t of discount^(t - k) A_i(k)) A_j(t).

                It is `full`, but for two things. A_i(k) is of i's action as well as of
                j's. And a pair of rounds k < t weighs discount^t discount^(t - k), in
                `full` discount^t: rounds that are far apart count less.

    python loqa.py --game ipd                      15 seconds on two cores
    python loqa.py --game ipd --variant alignment  the same

On the IPD both players defect at beta = 0, a return of -2 each. With `full` and a beta
of 2 all pairs play a form of tit-for-tat and get -1.00, beside best responses as well;
a naive learner beside such an agent gets -2.00, the agent -.54. `alignment` does nearly
as well. With LOQA's factor agents at beta = 10 get -1.05 with each other: after the
first round they cooperate whatever the other does, and a best response leaves them
-2.94. Where m(b | s) is near 1 the factor is near 0: if j prefers to defect, i rewards
its cooperation, and does not punish its defection.

All is exact here, and rounds count as in the return. In LOQA's code for the IPD episodes
have ten rounds, all of which weigh the same, so that sums of rewards are smaller, and
beta does less; it is 1. Its m has the sampled return for b, and a learned value for the
other action. It discounts the derivative of Q_j by a further .9 a round; with that
agents do reciprocate here at a beta of .5, though not at 1. As in that code x_i acts on
Q_j(s_t, b_t) by what i does from round t + 1 on. Its action of round t, which cannot
answer b_t, is held constant. In Alignment's code pairs of rounds weigh
discount^(t - k), without discount^t. Q_j is a sum of rewards, not multiplied by
1 - discount as returns are. Games have to be iterated. A run prints a table and writes
results/loqa_GAME.npz and figures/loqa_GAME.png.
"""

import argparse
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from games import (
    Game,
    at_least_float32,
    checked_policies,
    eliminate,
    evaluate_game,
    find_game,
    make_folders,
    memory_of,
    next_observations,
    print_settings,
    report,
    run_script,
    seen_by_the_other,
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


BETAS = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of a run. The defaults are for the IPD: see `make_config`."""

    game: str = flag(
        "ipd", "the game, or a variant of it such as ipd+mlp: see games.py"
    )
    seed: int = flag(0, "first random seed", 0, 2**31 - 1)
    num_seeds: int = flag(1, "number of seeds: seed, seed + 1, ...", 1, 1000)
    lr: float = flag(2.0, "step size of the policies", 0, 1e30)
    betas: tuple = flag(BETAS, "inverse temperatures", 0, 1e30, type=float, nargs="+")
    variant: str = flag(
        "loqa", "LOQA or a relative", choices=["loqa", "full", "alignment"]
    )
    eval_pairs: int = flag(256, "policy pairs for each beta and seed", 1, 100_000)
    eval_steps: int = flag(500, "steps that policies are followed for", 1, 1_000_000)

    def __post_init__(self):
        check_settings(self)


def make_config(game: str | Game = "ipd", quick: bool = False, **changes) -> Config:
    """The settings for a game, with changes. ValueError if out of range."""
    played = find_game(game)
    if not played.iterated:
        raise ValueError(f"loqa.py needs an iterated game, not {played.name}")
    if played.sample is not None:
        raise ValueError(f"loqa.py needs exact returns, not those of {played.name}")
    # Where payoffs are larger, lr is smaller, and so is beta.
    betas = [beta / (2 / played.rules.lr) for beta in BETAS]
    settings = {"game": played.name, "lr": played.lr, "betas": betas}
    if quick:
        settings.update(eval_pairs=16)
    settings.update(changes)
    settings["betas"] = tuple(settings["betas"])
    return Config(**settings)


# --- LOQA: what a player ascends ------------------------------------------------------
#
# Arrays have an axis for what player i has seen, s, of o observations; one for the
# other's action, b; and one for its own, a. Actions are in the order D, C.


def chances(cooperates: jax.Array) -> jax.Array:
    """Probabilities of D and C from those of C. (o,) -> (o, 2)."""
    return jnp.stack([1 - cooperates, cooperates], axis=1)


def influence(game: Game, x: jax.Array, i: int, beta, variant: str) -> jax.Array:
    """A number whose gradient by x_i is what player i follows beside g_i. ().

    Arguments are those of `loqa_gradient`, and the player, 0 or 1. Only the gradient
    has a meaning.

    The policy-gradient theorem says how x_i acts on j's value of b_k by i's actions of
    the rounds t > k alone (that of round k is held constant):

        d/dx_i Q_j(s_k, b_k) = mean of sum over t > k of
            discount^(t - k) A_j(s_t, a_t) d/dx_i log pi_i(a_t | s_t).

    In `loqa` d/dx_i log m is beta (1 - m) times that. In `full` it is beta times that,
    less what is the same for both b, which falls out, as the mean over b of A_i(s, b)
    is 0. So each variant is a sum over pairs of rounds k < t: a weight of what happened
    at k, discounted from k to t, times A_j at t. Only weight and discount differ.
    """
    log_odds = at_least_float32(game.log_odds(x))
    memory = memory_of(log_odds)
    discount = game.rules.discount

    cooperates = jax.nn.sigmoid(log_odds)
    own = chances(cooperates[i])  # (o, a); all that is differentiated
    pi_i = jax.lax.stop_gradient(own)[:, None, :]  # (o, 1, a)
    # j sees the same rounds with its own action first: its row for what i sees.
    other = jax.lax.stop_gradient(cooperates[1 - i])[seen_by_the_other(memory)]
    pi_j = chances(other)[:, :, None]  # (o, b, 1)
    # Of DD, CD, DC, CC for player 1: (player, b, a), if i is player 1.
    payoffs = jnp.asarray(game.rules.payoffs, log_odds.dtype).reshape(2, 2, 2)
    if i == 1:
        payoffs = payoffs.swapaxes(1, 2)

    # The chain of observations: the chance to see one after another.
    joint = pi_j * pi_i  # (o, b, a)
    follows = next_observations(memory).reshape(-1, 2, 2)  # (o, b, a), indices
    is_next = follows[..., None] == np.arange(len(follows))  # (o, b, a, o)
    transition = (joint[..., None] * is_next).sum(axis=(1, 2))  # (o, o)
    identity = jnp.eye(len(follows), dtype=log_odds.dtype)

    # Discounted share of all rounds in which s is seen; the first sees s = 0, init.
    start = (1 - discount) * identity[0]
    visits = eliminate((identity - discount * transition).T, start)

    def values(payoff):
        """Discounted sums from an observation on, (o,), and by both actions there.

        Of payoffs less their mean, so that sums are small: advantages stay the same,
        and in float32 they are not lost in the rounding of large values.
        """
        per_round = (joint * payoff).sum(axis=(1, 2))
        mean = (visits * per_round).sum()
        value = eliminate(identity - discount * transition, per_round - mean)
        return value, payoff - mean + discount * value[follows]

    value_i, q_i = values(payoffs[i])
    _, q_j = values(payoffs[1 - i])

    # What happens at k: the advantage for i.
    advantage = q_i - value_i[:, None, None]  # (o, b, a)
    carry = discount
    if variant == "alignment":
        carry = discount**2  # discount^t discount^(t - k) = discount^k carry^(t - k)
    else:
        advantage = (pi_i * advantage).sum(axis=2, keepdims=True)  # A_i(s, b)
    if variant == "loqa":
        model = jax.nn.softmax(beta * (pi_i * q_j).sum(axis=2, keepdims=True), axis=1)
        advantage = advantage * (1 - model)
    weight = visits[:, None, None] * joint * advantage  # (o, b, a)

    # The sum over k < t of carry^(t - k) times the weight, by what is seen at t.
    after = (weight[..., None] * is_next).sum(axis=(0, 1, 2))  # (o,), at k + 1
    later = eliminate((identity - carry * transition).T, carry * after)  # (o,)

    # What happens at t: the mean over a of A_j d log pi_i is the sum over a of
    # Q_j d pi_i, as the chances pi_i sum to 1, and V_j falls out.
    q_j_of_a = (pi_j * q_j).sum(axis=1)  # (o, a)
    return beta * (later[:, None] * q_j_of_a * own).sum()


def loqa_gradient(game: Game, x: jax.Array, beta, variant: str = "loqa") -> jax.Array:
    """The update direction of LOQA, or that of a variant.

    Args:
      game: an iterated game; ValueError if it is none.
      x: joint policy, (2, n).
      beta: the inverse temperature of the model of the opponent, (), for sums of
        rewards, 1 / tau in LOQA; in `alignment` the weight of the product of
        advantages. At 0 all variants are the naive gradient.
      variant: "loqa", "full" or "alignment"; ValueError if it is another.

    Returns:
      (2, n), in units of return per unit of policy parameter. All of it is multiplied
      by 1 - discount, as returns are. Row i is for player i.
    """
    if not game.iterated:
        raise ValueError(f"loqa_gradient takes an iterated game, not {game.name}")
    x = checked_policies(x, game.n)
    if variant not in ("loqa", "full", "alignment"):
        raise ValueError(f"variant is one of loqa, full, alignment, not {variant}")
    shaping = jax.grad(influence, argnums=1)
    shaping_1 = shaping(game, x, 0, beta, variant)[0]
    shaping_2 = shaping(game, x, 1, beta, variant)[1]
    return simultaneous_gradient(game.f, x) + jnp.stack([shaping_1, shaping_2])


# --- Evaluation -----------------------------------------------------------------------


def evaluate(key: jax.Array, game: Game, config: Config) -> dict[str, jax.Array]:
    """LOQA's agents at every beta. Arrays (beta, ...).

    `key` draws the policies that they start from, the same for all betas. The arrays
    are those of `evaluate_game`.
    """

    def evaluate_at(beta):
        def step(x):
            return x + config.lr * loqa_gradient(game, x, beta, config.variant)

        return evaluate_game(
            key,
            game,
            step,
            lr=config.lr,
            steps=config.eval_steps,
            pairs=config.eval_pairs,
        )

    return jax.vmap(evaluate_at)(jnp.array(config.betas))


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
    results = jax.jit(jax.vmap(run, out_axes=1))(seeds)  # arrays (beta, seed, ...)
    report(
        "loqa",
        game,
        settings,
        config.betas,
        jax.device_get(results),
        symbol=r"inverse temperature $\beta$",
        color="goldenrod",
        out=out,
    )


if __name__ == "__main__":
    run_script(main)

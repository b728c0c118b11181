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
"""COALA: shape naive learners, and get along with others that do.

Meulemans et al. (2024), Multi-Agent Cooperation through Learning-Aware Policy
Gradients, in exact form: what their COALA-PG estimates (Eq. 17). An agent is a policy
that stands still while others learn. In a share p of its plays the other player is a
fresh naive learner, which starts at a random policy y_0 and takes M steps. With the
agent as player 1:

    y_(m+1) = y_m + eta d/dy f_2(x_1, y_m)

In the other plays it is another agent, x_2. Player 1 ascends

    p mean of (f_1(x_1, y_0) + ... + f_1(x_1, y_M)) / (M + 1) + (1 - p) f_1(x_1, x_2)

by AdamW, the mean over random y_0, and player 2 likewise. The gradient goes through all
M steps of the learner, but x_2 is held constant. Were y_0 the present x_2, and the last
return f_1(x_1, y_M) all that counts, it would be LOLA's gradient.

    python coala.py --game ipd          10 to 40 seconds on two cores
    python coala.py --game imp --quick  a small run, 10 to 30 seconds

On the iterated prisoner's dilemma (ipd; -1 if both cooperate, -2 if both defect) expect
both agents to cooperate: 31 of 32 pairs get -1.01 each, one -1.5. Beside a naive
learner both get -1.00, as it learns to cooperate as well.

With --share 0 there are agents alone: they learn naively, if by AdamW, and defect. With
--share 1 there are naive learners alone, and agents learn to extort: with seed 7 one
gets -.81 beside a naive learner, which gets -1.38, and two agents defect. A run prints
a table and writes results/coala_GAME.npz and figures/coala_GAME.png.
"""

import argparse
import dataclasses
import functools
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from games import (
    Game,
    checked_policies,
    checked_returns,
    evaluate_game,
    find_game,
    flatten,
    load_model,
    make_folders,
    print_progress,
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
    num_seeds: int = flag(
        1, "number of trained pairs of agents: seed, seed + 1, ...", 1, 1000
    )
    lr: float = flag(2.0, "step size of learners in the evaluation", 0, 1e30)
    eta: float = flag(5.0, "step size of naive learners in training", 0, 1e30)
    learner_steps: int = flag(10, "steps M that a naive learner takes", 1, 1000)
    share: float = flag(0.5, "share p of naive learners among the others", 0, 1)
    outer_steps: int = flag(4000, "steps of AdamW", 1, 1_000_000)
    batch_size: int = flag(16, "naive learners of an agent in a step", 1, 65_536)
    model_lr: float = flag(0.005, "learning rate of AdamW", 0, 1e30)
    eval_pairs: int = flag(256, "random opponents in the evaluation", 1, 100_000)
    eval_steps: int = flag(500, "steps of learners in the evaluation", 1, 1_000_000)

    def __post_init__(self):
        check_settings(self)


def make_config(game: str | Game = "ipd", quick: bool = False, **changes) -> Config:
    """The settings for a game, with changes. ValueError if out of range."""
    played = find_game(game)
    if played.sample is not None:
        raise ValueError(f"coala.py needs exact returns, not those of {played.name}")
    settings = {"game": played.name, "lr": played.lr}
    # On the IPD the paper's 5, for returns that are multiplied by 1 - discount, as ours
    # are. With 5 for sums, 5 / (1 - discount) here, mixed pools do not cooperate.
    settings["eta"] = 2.5 * played.lr
    if played.planar:
        settings.update(eval_pairs=32, eval_steps=200)
    if quick:
        settings.update(outer_steps=1000, eval_pairs=16)
    settings.update(changes)
    return Config(**settings)


# --- COALA: what an agent ascends (Eq. 17) --------------------------------------------


def lifetime_return(f, x: jax.Array, agent: int, eta: float, steps: int) -> jax.Array:
    """Mean return of an agent beside a naive learner, while that one learns.

    Args:
      f: differentiable game, (2, n) -> (2,).
      x: (2, n), the agent's policy in its row, in the other where the learner starts.
      agent: which player the agent is, 0 or 1.
      eta: the learner's step size.
      steps: how many steps M it takes.

    Returns:
      (), the mean of f_i(x_i, y_0), ..., f_i(x_i, y_M): M + 1 returns.
    """
    learner = 1 - agent

    def learn(x, _):
        slope = jax.grad(lambda x: f(x)[learner])(x)[learner]
        return x.at[learner].add(eta * slope), f(x)[agent]

    last, returns = jax.lax.scan(learn, x, length=steps)
    return (returns.sum() + f(last)[agent]) / (steps + 1)


def coala_returns(
    f, x: jax.Array, newcomers: jax.Array, eta: float, share: float, steps: int
) -> jax.Array:
    """What each agent ascends, (2,), as a function of its own policy alone.

    The other agent is held constant. Arguments are those of `coala_gradient`.
    """
    x = checked_policies(x)
    check = partial(checked_policies, n=x.shape[1])
    newcomers = jax.vmap(check)(jnp.asarray(newcomers)).astype(x.dtype)
    f = checked_returns(f)

    def returns_of(agent):
        def beside(newcomer):
            start = newcomer.at[agent].set(x[agent])
            return lifetime_return(f, start, agent, eta, steps)

        with_learners = jax.vmap(beside)(newcomers).mean()
        pair = jax.lax.stop_gradient(x).at[agent].set(x[agent])
        with_agent = f(pair)[agent]
        return share * with_learners + (1 - share) * with_agent

    return jnp.stack([returns_of(0), returns_of(1)])


def coala_gradient(
    f, x: jax.Array, newcomers, eta: float, share: float = 0.5, steps: int = 10
) -> jax.Array:
    """COALA's update direction, exact but for the sample of naive learners.

    Args:
      f: differentiable game, (2, n) -> (2,), the returns of both players.
      x: the agents' policies, (2, n).
      newcomers: (batch, 2, n), where naive learners start: row 1 beside player 1's
        agent, row 0 beside player 2's.
      eta: step size of the naive learners.
      share: of naive learners among those that an agent meets, p.
      steps: how many steps M a naive learner takes.

    Returns:
      (2, n), in units of return per unit of policy parameter. Row i is the derivative
      of what player i's agent ascends with respect to x_i.
    """

    def total(x):
        return coala_returns(f, x, newcomers, eta, share, steps).sum()

    return jax.grad(total)(checked_policies(x))


# --- Training -------------------------------------------------------------------------


class Agents(NamedTuple):
    """What is learned: row 0 is of the agent that is player 1, row 1 of the other."""

    policy: jax.Array  # (2, n)


class TrainState(NamedTuple):
    """What changes in training."""

    params: Agents
    opt_state: optax.OptState
    step: jax.Array  # steps of AdamW done


def model_init(key: jax.Array, game: Game, config: Config) -> Agents:
    """What training begins with: random policies."""
    return Agents(game.init(key))


def train_init(key: jax.Array, game: Game, config: Config) -> TrainState:
    """The state before the first step of AdamW. `key` is the seed's."""
    params = model_init(jax.random.fold_in(key, 0), game, config)
    opt_state = optax.adamw(config.model_lr).init(params)
    return TrainState(params, opt_state, jnp.int32(0))


def outer_step(key: jax.Array, state: TrainState, game: Game, config: Config):
    """A step of AdamW for both agents, with fresh naive learners. (state, metrics)."""
    keys = jax.random.split(key, config.batch_size)
    newcomers = jax.vmap(game.init)(keys)  # (batch, 2, n)

    def loss(params):
        returns = coala_returns(
            game.f,
            params.policy,
            newcomers,
            config.eta,
            config.share,
            config.learner_steps,
        )
        return -returns.sum(), returns  # each return has a gradient in its row alone

    (value, returns), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
    optimizer = optax.adamw(config.model_lr)
    change, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, change)
    metrics = {"loss": value, "mean_return": returns}
    return TrainState(params, opt_state, state.step + 1), metrics


def train_chunk(key: jax.Array, state: TrainState, game: Game, config: Config, count):
    """`count` steps of AdamW. Returns (state, curves), the metrics of each step.

    `key` is the seed's, in all chunks. "loss" is (count,); "mean_return", what each
    agent ascends, is (count, 2), player 1's agent first.
    """

    def step(state, _):
        key_step = jax.random.fold_in(key, 1 + state.step)
        return outer_step(key_step, state, game, config)

    return jax.lax.scan(step, state, length=count)


def train(key: jax.Array, game: Game, config: Config):
    """Train one pair of agents. Returns (params, curves), as `train_chunk` of all steps.

    For use from Python: jit it with `game` and `config` static, and map it over keys.
    """
    state = train_init(key, game, config)
    state, curves = train_chunk(key, state, game, config, config.outer_steps)
    return state.params, curves


# --- Evaluation -----------------------------------------------------------------------


def evaluate(
    key: jax.Array, params: Agents, game: Game, config: Config
) -> dict[str, jax.Array]:
    """The agents stand still; learners beside them start where `key` draws.

    The arrays are those of `evaluate_game` with an axis of length 1 before, as that of
    a sweep. In self-play nothing is drawn: all pairs of a seed are the same. Of planar
    games the survey of the plane says nothing, as agents stay where they are.
    """
    results = evaluate_game(
        key,
        game,
        lambda x: x,
        lr=config.lr,
        steps=config.eval_steps,
        pairs=config.eval_pairs,
        agent_start=params.policy,
    )
    return jax.tree.map(lambda leaf: leaf[None], results)


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


def load(path: str | Path, seed: int | None = None, game: Game | None = None):
    """The agents of results/coala_GAME.npz. Returns (params, config).

    Args:
      path: of the file.
      seed: which pair of agents, if the file has several; the first if None.
      game: the game, if it is not one of games.py.
    """
    return load_model(path, Config, model_init, seed, game)


CHUNK = 100  # steps of AdamW between two lines of progress


def train_seeds(seeds: np.ndarray, game: Game, config: Config):
    """Train a pair of agents for each seed. Returns (params, curves), seeds on axis 0.

    Nothing is saved before the end. SystemExit, status 1, if training diverges.
    """
    keys = jax.vmap(lambda seed: jax.random.split(jax.random.key(seed))[0])(seeds)
    state = jax.vmap(lambda key: train_init(key, game, config))(keys)
    parts = []

    @functools.cache
    def compiled(count):  # a program for chunks of so many steps
        chunk = partial(train_chunk, game=game, config=config, count=count)
        return jax.jit(jax.vmap(chunk)).lower(keys, state).compile()

    for done in range(0, config.outer_steps, CHUNK):
        count = min(CHUNK, config.outer_steps - done)
        run = compiled(count)
        begin = time.perf_counter()
        state, curves = jax.device_get(run(keys, state))
        rate = count / (time.perf_counter() - begin)
        finite = [np.isfinite(leaf).all() for leaf in jax.tree.leaves((state, curves))]
        if not all(finite):
            steps = f"between steps {done} and {done + count}"
            raise SystemExit(f"training diverged {steps}")
        parts.append(curves)
        print_progress(done + count, config.outer_steps, curves, rate)

    curves = {}
    for name in parts[0]:
        curves[name] = np.concatenate([part[name] for part in parts], axis=1)
    return state.params, curves


def draw_curves(figure, curves: dict, config: Config):
    """How training went, two lines for each seed."""
    axis = figure.subplots()
    steps = np.arange(1, config.outer_steps + 1)
    curve = curves["mean_return"]  # (seed, step, 2)
    axis.plot(steps, curve[..., 0].T, "-", color="tab:cyan", linewidth=1)
    axis.plot(steps, curve[..., 1].T, ":", color="tab:cyan", linewidth=1.5)
    axis.set(xlabel="steps of AdamW", ylabel="mean return in training")
    lines = [axis.lines[0], axis.lines[-1]]
    names = ["agent, player 1", "agent, player 2"]
    axis.legend(lines, names, loc="upper left", bbox_to_anchor=(1, 1))


def main(argv=None):
    config, out = parse_args(argv)
    game = find_game(config.game)
    settings = print_settings(config)
    seeds = np.arange(config.num_seeds, dtype=np.uint32) + config.seed
    params, curves = train_seeds(seeds, game, config)

    def evaluate_one(seed, params):
        _, key = jax.random.split(jax.random.key(seed))  # the first is for training
        return evaluate(key, params, game, config)

    evaluate_all = jax.jit(jax.vmap(evaluate_one, out_axes=1))
    results = jax.device_get(evaluate_all(seeds, params))
    results |= curves | flatten("params", params)
    report(
        "coala",
        game,
        settings,
        [config.lr],
        results,
        symbol="step size lr",
        color="tab:cyan",
        out=out,
        draw_below=lambda figure: draw_curves(figure, curves, config),
    )


if __name__ == "__main__":
    run_script(main)

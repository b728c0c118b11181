"""M-MAML: learn where to start and how fast to learn, so that naive learning from there ends well.

Al-Shedivat et al. (2018), Continuous Adaptation via Meta-Learning, used on exact games by Lu et al. (2022), Model-Free
Opponent Shaping. A player in seat i learns an initial policy x_i(0) and a step size s_i. From there on it is a naive
learner (Eq. 1 of Cooijmans, Aghajohari and Courville, Learning with Learning Awareness using Meta-Values), and so is
the other, j, which starts at a random policy:

    x_i(t + 1) = x_i(t) + s_i d f_i / d x_i (x(t)),    x_j(t + 1) = x_j(t) + lr d f_j / d x_j (x(t)).

Adam ascends the mean of f_i(x(1)), ..., f_i(x(T)) over a batch of opponents. The gradient goes through all T joint
steps, and so through the opponent's learning, whose rule has to be known. A step size may become negative.

    python maml.py --game ipd          returns and training: half a minute on a 2-core CPU
    python maml.py --game imp --quick  to see it run: 20 seconds

What to expect on the IPD: agents that hardly move, or descend, and to whom naive learners yield, mostly -.96 : -1.09;
among themselves they defect, -2. With --lr 25 the seed decides: -.9 to -2 in training. A run prints a table and writes
results/maml_GAME.npz and figures/maml_GAME.png.
"""

import dataclasses
import inspect
import pathlib
import re
import sys
import time
from argparse import (
    SUPPRESS,
    ArgumentParser,
    ArgumentTypeError,
    BooleanOptionalAction,
    RawDescriptionHelpFormatter,
)
from functools import partial
from typing import Annotated, NamedTuple, get_origin, get_type_hints

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from games import (
    GAMES,
    VARIANTS_HELP,
    Game,
    evaluate_game,
    find_game,
    make_folders,
    print_settings,
    report,
    run_script,
    simultaneous_gradient,
)

NAME = "maml"  # of the files

Count = Annotated[int, 1, 2**31 - 1]  # the least and the greatest value of a setting


# fmt: off
@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run, and so all flags, for the IPD; `make_config` has those for other games."""

    game: str = "ipd"  # the game, or a variant of it
    seed: Annotated[int, 0, 2**31 - 1] = 0  # first seed
    num_seeds: Annotated[int, 1, 1000] = 1  # number of seeds, each with policies of its own: seed, seed + 1, ...
    lr: Annotated[float, 1e-30, 1e30] = 2.0  # step size of the opponents (alpha in Eq. 1), and at first of the agents
    outer_steps: Count = 1000  # steps of Adam, best a multiple of 25
    batch_size: Count = 64  # opponents in each of them
    rollout_length: Count = 300  # joint naive steps T
    model_lr: Annotated[float, 0.0, 1e30] = 0.1  # learning rate of Adam
    eval_pairs: Count = 256  # opponents for each seed
    eval_steps: Count = 500  # steps that policies are followed for

    def __post_init__(self):
        check(self)
# fmt: on


def make_config(game: str | Game = "ipd", quick: bool = False, **changes) -> Config:
    """The settings for a game, one of `GAMES` or one's own, with changes."""
    played = find_game(game)
    if played.sample is not None:
        raise ValueError(
            f"game: {NAME} needs exact returns, not those of {played.name}"
        )
    settings = dict(game=played.name, lr=played.lr)
    settings |= dict(
        model_lr=min(0.1, 0.1 * played.lr)
    )  # what is learned is as small as a step size
    settings |= dict(eval_pairs=32, eval_steps=200) if played.planar else {}
    settings |= (
        dict(outer_steps=200, rollout_length=100, eval_pairs=16) if quick else {}
    )
    return Config(**settings | changes)


class Learner(NamedTuple):
    """What is learned: for each seat the policy that an agent there starts from, and its step size."""

    policy: jax.Array  # initial policies x(0), (2, n)
    step_size: jax.Array  # s, (2,)


def meta_return(
    learner: Learner, game: Game, opponent: jax.Array, seat: int, lr: float, steps: int
) -> jax.Array:
    """Mean return of an agent over its first joint steps with a naive learner, the objective.

    Args:
      learner: where the agent starts, and its step size.
      opponent: where the other starts, in its row of (2, n).
      seat: whose place the agent has, 0 or 1.
      lr: the other's step size.
      steps: joint naive steps T.

    Returns:
      (), mean of f_seat(x(1)), ..., f_seat(x(T)), to be differentiated by `learner`.
    """
    chex.assert_shape((learner.policy, opponent), (2, game.n))
    start = opponent.at[seat].set(learner.policy[seat])
    step_sizes = jnp.full((2, 1), lr, start.dtype).at[seat].set(learner.step_size[seat])

    @jax.checkpoint  # backwards each step is computed again from its x: half the time of reading what it kept
    def step(x, _):
        x = x + step_sizes * simultaneous_gradient(game.f, x)
        return x, game.f(x)[seat]

    return jax.lax.scan(step, start, length=steps)[1].mean()


def model_init(key: jax.Array, game: Game, config: Config) -> Learner:
    """What it begins with: random policies, and the opponents' step size."""
    policy = game.init(key)
    return Learner(policy, jnp.full(2, config.lr, policy.dtype))


class TrainState(NamedTuple):
    """What changes while a learner is trained."""

    params: Learner
    opt_state: optax.OptState
    step: jax.Array  # steps of Adam done


def train_init(key: jax.Array, game: Game, config: Config) -> TrainState:
    """The state before the first step of Adam."""
    params = model_init(jax.random.fold_in(key, 0), game, config)
    return TrainState(
        params, optax.adam(config.model_lr).init(params), jnp.zeros((), jnp.int32)
    )


def outer_step(key: jax.Array, state: TrainState, game: Game, config: Config):
    """A step of Adam on the mean returns of both seats, each against opponents of its own. Returns (state, metrics)."""
    keys = jax.random.split(key, (2, config.batch_size))

    def loss(params):
        one = partial(
            meta_return, params, game, lr=config.lr, steps=config.rollout_length
        )
        returns = [
            jax.vmap(lambda key: one(game.init(key), seat))(keys[seat]).mean()
            for seat in (0, 1)
        ]
        return -jnp.stack(returns).mean(), jnp.stack(returns)

    (value, returns), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
    metrics = {
        "loss": value,
        "mean_return": returns,
        "step_size": state.params.step_size,
    }
    step, opt_state = optax.adam(config.model_lr).update(gradient, state.opt_state)
    return TrainState(
        optax.apply_updates(state.params, step), opt_state, state.step + 1
    ), metrics


def train_steps(
    key: jax.Array, state: TrainState, game: Game, config: Config, count: int
):
    """As many steps of Adam, for one seed. `key` is the seed's, wherever it begins. Returns (state, metrics)."""
    keys = jax.vmap(partial(jax.random.fold_in, key))(
        1 + state.step + jnp.arange(count)
    )
    return jax.lax.scan(
        lambda state, key: outer_step(key, state, game, config), state, keys
    )


def train(key: jax.Array, game: Game, config: Config):
    """Train one learner: (parameters, metrics of all steps). Jit it with game and config static, map it over keys."""
    state, metrics = train_steps(
        key, train_init(key, game, config), game, config, config.outer_steps
    )
    return state.params, metrics


def evaluate(
    key: jax.Array, params: Learner, game: Game, config: Config
) -> dict[str, jax.Array]:
    """Evaluate learners from where they start, beside others that start where `key` draws. Arrays (1, ...).

    In self-play all pairs of a seed are the same: only seeds differ.
    """

    step = lambda x: (
        x + params.step_size[:, None] * simultaneous_gradient(game.f, x)
    )  # of a size of one's own
    settings = dict(lr=config.lr, steps=config.eval_steps, pairs=config.eval_pairs)
    results = evaluate_game(key, game, step, agent_start=params.policy, **settings)
    return jax.tree.map(lambda leaf: leaf[None], results)


def main(argv=None):
    config, game, args = parse(argv)
    make_output_folders(args)
    described = print_settings(config)
    seeds = np.arange(config.num_seeds, dtype=np.uint32) + config.seed
    length = max(
        length for length in range(1, 26) if config.outer_steps % length == 0
    )  # of a chunk, all alike
    keys, eval_keys = jax.vmap(
        lambda seed: jax.random.split(jax.random.key(seed)), out_axes=1
    )(seeds)
    state, begin = (
        jax.vmap(lambda key: train_init(key, game, config))(keys),
        time.perf_counter(),
    )
    chunk = jax.vmap(lambda key, state: train_steps(key, state, game, config, length))
    chunk = jax.jit(chunk).lower(keys, state).compile()
    print(
        f"compiled in {time.perf_counter() - begin:.1f} s; there are no checkpoints",
        flush=True,
    )
    parts, begin = [], time.perf_counter()
    for done in range(length, config.outer_steps + 1, length):
        state, metrics = chunk(keys, state)
        parts.append(jax.device_get(metrics))
        if not all(
            np.isfinite(leaf).all() for leaf in jax.tree.leaves((state, parts[-1]))
        ):
            sys.exit(
                f"{NAME}.py: training diverged between steps {done - length} and {done}"
            )
        rate, best = (
            done / (time.perf_counter() - begin),
            -parts[-1]["loss"][:, -1].mean(),
        )
        speed = f"{rate:.3g} steps/s  {(config.outer_steps - done) / rate:.0f} s left"
        print(
            f"{done:6d} / {config.outer_steps}  mean return {best:.4g}  {speed}",
            flush=True,
        )
    curves = {
        name: np.concatenate([part[name] for part in parts], 1) for name in parts[0]
    }
    final = jax.vmap(
        lambda key, params: evaluate(key, params, game, config), out_axes=1
    )
    results = jax.device_get(jax.jit(final)(eval_keys, state.params)) | curves
    results |= {
        f"params/{name}": np.asarray(leaf)
        for name, leaf in state.params._asdict().items()
    }

    def draw_curves(figure):
        for axis, name in zip(figure.subplots(1, 2), ("mean_return", "step_size")):
            for seat, style in enumerate("-:"):
                axis.plot(
                    curves[name][..., seat].T, style, color="tab:red", linewidth=0.6
                )  # a line for each seed
            axis.set(xlabel="steps of Adam (dotted: player 2)", ylabel=name)

    report(
        NAME,
        game,
        described,
        [config.lr],
        results,
        symbol="lr",
        color="tab:red",
        out=args.out,
        draw_below=draw_curves,
    )


# --- shared: command line of scripts that train ---
def check(config):
    """Raise ValueError where a field is out of the range in its type: flag, what it takes. Lists become tuples."""
    for name, hint in list(get_type_hints(Config, include_extras=True).items())[
        1:
    ]:  # all but the game
        value, takes = getattr(config, name), hint.__metadata__
        if get_origin(hint.__origin__) is tuple:
            object.__setattr__(
                config, name, value := tuple(np.ravel(value).tolist())
            )  # jit hashes static arguments
        each = [
            one
            for one in np.ravel(value)
            if one is not None or getattr(Config, name) is not None
        ]
        if not all(
            one in takes if isinstance(one, str) else takes[0] <= one <= takes[1]
            for one in each
        ):
            words = (
                " or ".join(takes)
                if isinstance(takes[0], str)
                else "numbers from {:g} to {:.10g}".format(*takes)
            )
            raise ValueError(
                f"{name.replace('_', '-')}: takes {words}, not {' '.join(map(str, each))}"
            )


def game_name(text: str) -> str:
    """The name of a game, for argparse."""
    try:
        return find_game(text).name
    except ValueError as error:
        raise ArgumentTypeError(str(error).removeprefix("game ")) from None


def parse(argv, **switches):
    """The command line, a flag for each field of Config and for `switches`: (config, game, arguments)."""
    # argparse takes -1e6 for a flag, but not with a space before it.
    argv = [
        re.sub(r"^-(?=[\d.])", " -", word)
        for word in (sys.argv[1:] if argv is None else argv)
    ]
    layout = dict(
        usage=SUPPRESS,
        formatter_class=RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    parser = ArgumentParser(f"{NAME}.py", description=__doc__, **layout)
    shown = f"the game: {', '.join(sorted(GAMES))}; or a variant of it: {VARIANTS_HELP} (default: ipd)"
    parser.add_argument("--game", default="ipd", type=game_name, help=shown)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a small run that shows the phenomenon in minutes",
    )
    known = parser.parse_known_args(argv)[
        0
    ]  # --help shows the defaults that go with these two
    parser.add_argument("-h", "--help", action="help", help="show this and exit")
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=".",
        help="where results/ and figures/ go (default: .)",
    )
    for name, settings in switches.items():
        parser.add_argument(f"--{name}", **settings)
    try:
        defaults = make_config(known.game, known.quick)
    except ValueError as error:
        parser.error(f"argument --{error}")
    hints = get_type_hints(Config, include_extras=True)
    for name, comment in re.findall(
        r"^    (\w+): .*  # (.*)$", inspect.getsource(Config), re.MULTILINE
    )[1:]:
        value, takes = getattr(defaults, name), hints[name].__metadata__
        settings = dict(
            type=type(takes[0]), nargs="+" if isinstance(value, tuple) else None
        )
        settings = {
            bool: dict(action=BooleanOptionalAction),
            str: dict(choices=takes),
        }.get(type(takes[0]), settings)
        shown = f"{comment} (default: {' '.join(map(str, np.ravel(value))) or None})"
        parser.add_argument(
            f"--{name.replace('_', '-')}", default=SUPPRESS, help=shown, **settings
        )
    args = parser.parse_args(argv)
    args.refuse = parser.error
    try:
        config = make_config(
            **{
                name: value
                for name, value in vars(args).items()
                if name in (*hints, "quick")
            }
        )
    except ValueError as error:
        parser.error(f"argument --{error}")
    args.results = (
        args.out / f"results/{getattr(config, 'name', NAME)}_{config.game}.npz"
    )
    return config, find_game(config.game), args


def make_output_folders(args):
    """Make results/ and figures/ once arguments and devices are checked, or refuse --out."""
    try:
        make_folders(args.out)
    except ValueError as error:
        args.refuse(str(error))


# --- end shared ---


if __name__ == "__main__":
    run_script(main)

"""M-FOS: an agent that plays a game of policies, and learns by PPO how to shape those who learn beside it.

Lu, Willi, Letcher and Foerster (2022), Model-Free Opponent Shaping, on exact games. A step of the meta-game is a whole
inner game. Its state is the pair of policies that was played last, x(t), which networks see as `game.features`. The
agent, in seat i, draws its next policy from a Gaussian of the mean and variance that a network makes of that state; the
other, j, takes a step of its own learning:

    x_i(t + 1) ~ N(mu(x(t)), sigma^2(x(t))),    x_j(t + 1) = x_j(t) + lr g_j(x(t)),    reward(t) = f_i(x(t + 1)).

PPO (Schulman et al., 2017, Eqs. 7 and 9) ascends the discounted sum of T rewards, and need not know how the other
learns. --opponent says who that is: a naive learner, LOLA, or a second agent that draws its policies likewise. (The
authors' pairs of agents begin with naive learners in place of each other, in ever fewer episodes, and learn slower.)

    python mfos.py --game ipd          4096 starts for each episode, as the authors have: a minute on a GPU, 45 without
    python mfos.py --game ipd --quick  256 starts: two to four minutes on a 2-core CPU

What to expect on the IPD, as means over a meta-episode, agent : other: naive learners are extorted, by three of eight
models of 4096 starts at -.48 : -2.16, while four are still on a plateau at about -.87 : -1.5. With LOLA the agent
cooperates, -1.02 each; pairs of agents defect (`python plots.py --table mfos`). A run prints a table and writes
results/mfos_GAME.npz and figures/mfos_GAME.png.
"""

import dataclasses
import inspect
import json
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
from jax.scipy.stats import norm

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
    write_file,
)

NAME = "mfos"  # of the files

Count = Annotated[int, 1, 2**31 - 1]  # the least and the greatest value of a setting
Step = Annotated[float, 0.0, 1e30]
Share = Annotated[float, 0.0, 1.0]


# fmt: off
@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run, and so all flags, the authors' for the IPD, but for half of their number of episodes."""

    game: str = "ipd"  # the game, or a variant of it
    seed: Annotated[int, 0, 2**31 - 1] = 0  # first seed
    num_seeds: Annotated[int, 1, 1000] = 1  # number of seeds, each with agents of its own: seed, seed + 1, ...
    opponent: Annotated[str, "naive", "lola", "self"] = "naive"  # the other in training: a learner, or M-FOS as well
    lr: Annotated[float, 1e-30, 1e30] = 25.0  # step size of learners
    alpha: Step = 25.0  # look-ahead step of --opponent lola; the default does not depend on --lr
    outer_steps: Count = 500  # meta-episodes, best a multiple of 10; PPO's update follows each
    batch_size: Count = 4096  # of them at once, each from a random pair of policies
    rollout_length: Count = 100  # meta-steps T in each of them
    gamma: Share = 0.99  # meta-discount
    hidden: Count = 256  # width of the networks
    model_lr: Step = 2e-3  # learning rate of Adam
    epochs: Annotated[int, 1, 1000] = 4  # steps of Adam in an update, each on the whole batch
    clip: Share = 0.2  # epsilon of PPO (its Eq. 7)
    value_weight: Step = 0.5  # c_1 of PPO (its Eq. 9)
    entropy_weight: Step = 0.01  # c_2 of PPO (its Eq. 9)
    eval_pairs: Count = 256  # policy pairs for each seed
    eval_steps: Count = 100  # steps that policies are followed for

    def __post_init__(self):
        check(self)

    @property
    def name(self) -> str:
        """What files are named after, with the opponent if it is not naive."""
        return NAME if self.opponent == "naive" else f"{NAME}-{self.opponent}"
# fmt: on


def make_config(game: str | Game = "ipd", quick: bool = False, **changes) -> Config:
    """The settings for a game, one of `GAMES` or one's own, with changes."""
    played = find_game(game)
    if played.sample is not None:
        raise ValueError(
            f"game: {NAME} needs exact returns, not those of {played.name}"
        )
    # The authors' learners take steps of 1 on returns without the factor 1 - discount: 25 on the IPD, where lr is 2.
    lr = 12.5 * played.lr if played.iterated else played.lr
    settings = dict(game=played.name, lr=lr, alpha=lr)
    settings |= dict(eval_pairs=32) if played.planar else {}
    settings |= dict(batch_size=256, eval_pairs=16) if quick else {}
    return Config(**settings | changes)


class Agent(NamedTuple):
    """Parameters theta of an agent. Both networks see the meta-game's state, its own policy first, (2 m,)."""

    actor: tuple[
        jax.Array, jax.Array
    ]  # -> of its next policy the mean, and the variance before softplus, (2 n,)
    critic: tuple[
        jax.Array, jax.Array
    ]  # -> its normalised return from there on, at whatever time, (1,)


def model_init(key: jax.Array, game: Game, config: Config) -> list[Agent]:
    """An agent for each seat; beside a learner one for both if the game is symmetric. Weights as PyTorch draws them."""
    inputs, hidden = (
        jax.eval_shape(game.features, jnp.zeros((2, game.n))).size,
        config.hidden,
    )

    def layer_init(key, inputs, outputs):  # biases are the last row
        return jax.random.uniform(key, (inputs + 1, outputs), minval=-1) / inputs**0.5

    def network_init(key, outputs):
        first, last = jax.random.split(key)
        return layer_init(first, inputs, hidden), layer_init(last, hidden, outputs)

    keys = jax.random.split(
        key, (1 if game.symmetric and config.opponent != "self" else 2, 2)
    )
    return [
        Agent(network_init(actor, 2 * game.n), network_init(critic, 1))
        for actor, critic in keys
    ]


def network(weights: tuple[jax.Array, jax.Array], state: jax.Array) -> jax.Array:
    """One hidden layer of tanh units. (..., inputs) -> (..., outputs)."""
    layer = lambda w, h: (
        jnp.matmul(h, w[:-1], precision="highest") + w[-1]
    )  # a GPU's default, TF32, has 10 bits
    return layer(weights[1], jnp.tanh(layer(weights[0], state)))


def distribution(agent: Agent, state: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation of the agent's next policy, independent normals. (..., 2 m) -> (..., n) twice."""
    mean, variance = jnp.split(network(agent.actor, state), 2, -1)
    return mean, jnp.sqrt(jax.nn.softplus(variance))


def act(
    key: jax.Array, agents: list[Agent], game: Game, x: jax.Array, seat: int
) -> tuple[jax.Array, ...]:
    """What the agent in this seat sees of x, (2 m,), the policy that it draws next, (n,), and its log density, ()."""
    chex.assert_shape(x, (2, game.n))
    state = jnp.roll(game.features(x), -seat, 0).ravel()
    mean, sigma = distribution(agents[seat % len(agents)], state)
    action = mean + sigma * jax.random.normal(key, mean.shape, mean.dtype)
    return state, action, norm.logpdf(action, mean, sigma).sum()


def opponent_gradient(game: Game, x: jax.Array, config: Config) -> jax.Array:
    """What learners follow: naive ones d f_j / d x_j, LOLA the same of its return after i's naive step. (2, n).

    That return is taken to first order, f_j + alpha (d f_j / d x_i) . (d f_i / d x_i): `taylor` in lola.py.
    """

    def surrogate(x):
        slopes = jax.jacrev(game.f)(x)  # d f_j / d x_i at [j, i], (2, 2, n)
        j, i = (0, 1), (1, 0)  # each learner, and the other
        return game.f(x) + config.alpha * (slopes[j, i] * slopes[i, i]).sum(-1)

    return simultaneous_gradient(surrogate if config.opponent == "lola" else game.f, x)


def meta_episode(key, agents: list[Agent], game: Game, config: Config, seat: int):
    """T meta-steps from random policies, as the player in this seat sees them.

    As in the authors' code an agent draws x_i(t + 1) before it has seen the other's step from x(t). By the same key
    agents see the same episode from both seats, each by a simulation of its own. Returns states (T, 2 m), actions
    (T, n), their log densities (T,), and both players' returns (T, 2), one's own first.
    """

    def step(x, key):
        keys = jax.random.split(key)
        state, action, log_prob = act(keys[seat], agents, game, x, seat)
        if config.opponent == "self":
            other = act(keys[1 - seat], agents, game, x, 1 - seat)[1]
        else:
            other = (x + config.lr * opponent_gradient(game, x, config))[1 - seat]
        x = jnp.roll(jnp.stack([action, other]), seat, 0)
        return x, (state, action, log_prob, jnp.roll(game.f(x), -seat))

    first, key = jax.random.split(key)
    return jax.lax.scan(
        step, game.init(first), jax.random.split(key, config.rollout_length)
    )[1]


def discounted_returns(rewards: jax.Array, gamma: float) -> jax.Array:
    """r(t) + gamma r(t + 1) + ... to the end of the episode. (T, ...) -> (T, ...).

    States do not tell the time (the authors' either), though less is to come near the end: noise, but no bias.
    """
    back_up = lambda later, reward: (reward + gamma * later,) * 2
    return jax.lax.scan(back_up, jnp.zeros_like(rewards[0]), rewards, reverse=True)[1]


def ppo_loss(
    agent: Agent, states, actions, log_probs, targets, config: Config
) -> jax.Array:
    """PPO's loss, Eq. 9 with the other sign. (batch, 2 m), (batch, n), (batch,), normalised returns (batch,) -> ().

    The advantage is the return less what the critic, as it is by now, makes of the state (the authors' code).
    """
    mean, sigma = distribution(agent, states)
    ratio = jnp.exp(norm.logpdf(actions, mean, sigma).sum(-1) - log_probs)
    value = network(agent.critic, states)[..., 0]
    advantage = targets - jax.lax.stop_gradient(value)
    clipped = jnp.clip(ratio, 1 - config.clip, 1 + config.clip)
    surrogate = jnp.minimum(ratio * advantage, clipped * advantage)  # Eq. 7
    entropy = jnp.log(sigma * (2 * jnp.pi * jnp.e) ** 0.5).sum(-1)
    return (
        config.value_weight * (value - targets) ** 2
        - surrogate
        - config.entropy_weight * entropy
    ).mean()


def ppo_update(agents: list[Agent], opt_state: optax.OptState, played, config: Config):
    """Steps of Adam, each on all that each agent saw, `meta_episode`'s arrays (T, batch, ...). Also returns losses."""
    batches = []
    for *batch, returns in played:
        targets = discounted_returns(returns[..., 0], config.gamma)
        batches.append(
            (*batch, (targets - targets.mean()) / (targets.std() + 1e-5))
        )  # over all steps and episodes

    def loss(agents, batches):  # each agent's depends on its own parameters alone
        return sum(
            ppo_loss(agent, *batch, config) for agent, batch in zip(agents, batches)
        )

    def epoch(state, _):
        agents, opt_state = state
        gradients = jax.lax.map(
            partial(jax.value_and_grad(loss), agents), batches
        )  # of each meta-step: less memory
        value, gradient = jax.tree.map(lambda leaf: leaf.mean(0), gradients)
        step, opt_state = optax.adam(config.model_lr).update(gradient, opt_state)
        return (optax.apply_updates(agents, step), opt_state), value

    return jax.lax.scan(epoch, (agents, opt_state), length=config.epochs)


class TrainState(NamedTuple):
    """What changes while agents are trained."""

    params: list[Agent]
    opt_state: optax.OptState
    step: jax.Array  # episodes done


def train_init(key: jax.Array, game: Game, config: Config) -> TrainState:
    """The state before the first episode."""
    agents = model_init(jax.random.fold_in(key, 0), game, config)
    return TrainState(
        agents, optax.adam(config.model_lr).init(agents), jnp.zeros((), jnp.int32)
    )


def outer_step(key: jax.Array, state: TrainState, game: Game, config: Config):
    """A meta-episode from each of many starts, and PPO's update of each agent. Returns (state, metrics)."""
    keys = jax.random.split(key, config.batch_size)
    episode = partial(meta_episode, agents=state.params, game=game, config=config)
    played = [
        jax.vmap(partial(episode, seat=seat), out_axes=1)(keys)
        for seat in range(len(state.params))
    ]
    (agents, opt_state), loss = ppo_update(
        state.params, state.opt_state, played, config
    )
    returns = jnp.stack([returns.mean((0, 1)) for *_, returns in played])  # (agent, 2)
    return TrainState(agents, opt_state, state.step + 1), {
        "loss": loss.mean(),
        "mean_return": returns,
    }


def train_steps(
    key: jax.Array, state: TrainState, game: Game, config: Config, count: int
):
    """As many episodes, for one seed. `key` is the seed's, wherever it begins. Returns (state, metrics)."""
    keys = jax.vmap(partial(jax.random.fold_in, key))(
        1 + state.step + jnp.arange(count)
    )
    return jax.lax.scan(
        lambda state, key: outer_step(key, state, game, config), state, keys
    )


def train(key: jax.Array, game: Game, config: Config):
    """Train agents: (parameters, metrics of all episodes). Jit it with game and config static, map it over keys."""
    state, metrics = train_steps(
        key, train_init(key, game, config), game, config, config.outer_steps
    )
    return state.params, metrics


def evaluate(
    key: jax.Array, params: list[Agent], game: Game, config: Config
) -> dict[str, jax.Array]:
    """Evaluate agents from policies that `key` draws, as others are, and in the meta-game. Arrays (1, ...).

    A step is the jump to what was drawn. `episode_returns`, (1, pair, T, 2), are those beside the
    opponent of the training, the agent's first. Of a pair of agents self-play is their own.
    """

    def step(x, key):
        keys = jax.random.split(key)  # one for each seat
        return jnp.stack(
            [act(key, params, game, x, seat)[1] for seat, key in enumerate(keys)]
        )

    opponent_step = lambda x: x + config.lr * opponent_gradient(game, x, config)
    results = evaluate_game(
        key,
        game,
        step,
        lr=config.lr,
        steps=config.eval_steps,
        pairs=config.eval_pairs,
        opponent_step=opponent_step if config.opponent == "lola" else None,
        draws=True,
    )
    keys = jax.random.split(
        jax.random.fold_in(key, config.eval_pairs + 1), config.eval_pairs
    )
    for seat in range(2 - game.symmetric):
        episode = partial(
            meta_episode, agents=params, game=game, config=config, seat=seat
        )
        results["episode_returns" + "_2" * seat] = jax.vmap(episode)(keys)[-1]
    return jax.tree.map(lambda leaf: leaf[None], results)


def flatten(prefix: str, tree) -> dict[str, np.ndarray]:
    """The leaves of a pytree by name, `prefix/path/to/leaf`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        f"{prefix}/{jax.tree_util.keystr(path, simple=True, separator='/')}": leaf
        for path, leaf in leaves
    }


def load_checkpoint(path, saved, length: int, config, args):
    """State and curves of a checkpoint, like these, if it is whole, of these settings, and of chunks of this length."""
    settings = json.loads(
        json.dumps(dataclasses.asdict(config))
    )  # tuples as JSON's lists
    try:
        arrays = dict(np.load(path, allow_pickle=False))
        had = json.loads(str(arrays["config"]))
        loaded = jax.tree.unflatten(
            jax.tree.structure(saved), map(arrays.get, flatten("saved", saved))
        )
        chex.assert_trees_all_equal_shapes_and_dtypes(loaded, saved)
        chex.assert_tree_all_finite(loaded)
        assert {*loaded[0].step} <= {
            *range(0, config.outer_steps + 1, length)
        } and np.ptp(loaded[0].step) == 0
        assert all(
            had[name] == settings[name]
            for name in settings
            if not name.startswith("eval_")
        )
    except Exception:  # whatever is raised on a damaged file
        args.refuse(
            f"argument --resume: takes a whole checkpoint of these settings, not {path}"
        )
    return loaded


def main(argv=None):
    resume = dict(
        action="store_true", help="go on from the checkpoint, if there is one"
    )
    config, game, args = parse(argv, resume=resume)
    make_output_folders(args)
    described = print_settings(config)
    seeds = np.arange(config.num_seeds, dtype=np.uint32) + config.seed
    length = max(
        length for length in range(1, 11) if config.outer_steps % length == 0
    )  # of a chunk, all alike
    keys, eval_keys = jax.vmap(
        lambda seed: jax.random.split(jax.random.key(seed)), out_axes=1
    )(seeds)

    def over_seeds(function, *args):  # in turn: the starts of one seed fill a device
        return (
            jax.jit(lambda *args: jax.lax.map(lambda one: function(*one), args))
            .lower(*args)
            .compile()
        )

    path, begin = args.results.with_suffix(".checkpoint.npz"), time.perf_counter()
    state = jax.vmap(lambda key: train_init(key, game, config))(keys)
    chunk = over_seeds(
        lambda key, state: train_steps(key, state, game, config, length), keys, state
    )
    curves = jax.eval_shape(jax.vmap(lambda key: train(key, game, config)[1]), keys)
    curves = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype), curves
    )  # filled chunk by chunk
    if args.resume and path.exists():
        state, curves = load_checkpoint(path, (state, curves), length, config, args)

    def save():
        write_file(
            path,
            partial(
                np.savez_compressed,
                config=described,
                **flatten("saved", (state, curves)),
            ),
        )

    save()
    print(
        f"compiled in {time.perf_counter() - begin:.1f} s; checkpoints in {path}, for --resume",
        flush=True,
    )
    first, begin = int(state.step[0]), time.perf_counter()
    for done in range(first + length, config.outer_steps + 1, length):
        state, metrics = jax.device_get(chunk(keys, state))
        if not all(
            np.isfinite(leaf).all() for leaf in jax.tree.leaves((state, metrics))
        ):
            sys.exit(
                f"{NAME}.py: training diverged between episodes {done - length} and {done}; {path} is from before"
            )
        for name, curve in curves.items():
            curve[:, done - length : done] = metrics[name]
        save()
        rate = (done - first) / (time.perf_counter() - begin)
        returns = metrics["mean_return"][:, -1, 0].mean(
            0
        )  # of the agent that is player 1
        speed = (
            f"{rate:.3g} episodes/s  {(config.outer_steps - done) / rate:.0f} s left"
        )
        print(
            f"{done:6d} / {config.outer_steps}  returns {returns[0]:.4g} : {returns[1]:.4g}  {speed}",
            flush=True,
        )
    final = over_seeds(
        lambda key, params: evaluate(key, params, game, config), eval_keys, state.params
    )
    results = {
        name: np.swapaxes(array, 0, 1)
        for name, array in final(eval_keys, state.params).items()
    }
    results |= curves | flatten("params", state.params)

    def draw_curves(figure):
        shown = {
            "episodes": curves["mean_return"][:, :, 0],
            "meta-steps": results["episode_returns"][0].mean(1),
        }
        for axis, (label, returns) in zip(
            figure.subplots(1, 2), shown.items()
        ):  # (seed, step, 2), of player 1
            axis.plot(
                returns[..., 0].T, color="tab:pink", linewidth=0.6
            )  # a line for each seed
            axis.plot(returns[..., 1].T, ":", color="black", linewidth=0.6)
            axis.set(xlabel=f"{label} (dotted: the other)", ylabel="mean return")

    for name in ("episode_returns", "episode_returns_2")[: 2 - game.symmetric]:
        print(
            f"{name} beside {config.opponent}: {{:.3f}} : {{:.3f}}".format(
                *results[name].mean((0, 1, 2, 3))
            )
        )
    report(
        config.name,
        game,
        described,
        [config.lr],
        results,
        symbol="lr",
        color="tab:pink",
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

"""POLA, proximal learning with opponent-learning awareness: the best policy nearby, given the opponent's next step.

Zhao, Lu, Grosse and Foerster (2022), Proximal Learning With Opponent-Learning Awareness, in the form that they call
outer POLA, with exact returns. Player 1's new policy maximises over y_1

    f_1(y_1, x_2 + alpha d/dx_2 f_2(y_1, x_2)) - beta D(x_1, y_1),

and player 2's likewise. D(x_1, y_1) is the sum over observations of KL(policy of x_1 || policy of y_1). LOLA takes one
gradient step on the first term, measured in parameters. Here policies climb to the top of the whole, whose price is on
what they do: where there is one top, and the climb gets there, player 1's new policy does not depend on how it is
parametrised. (It does on how player 2 is, whose imagined step is naive. In full POLA that is proximal, too.)

    python pola.py --game ipd --quick          returns over alpha: a minute on one CPU core
    python pola.py --game contribution --alpha 50 100 125 --eval-steps 10      tit-for-tat, at a factor of 1.33

What to expect on the IPD: defection (-2) up to alpha = 5, and most cooperation around 20 (-1.26). In the contribution
game, with alpha = 125, almost all pairs of tables play tit-for-tat within two steps, and with `--policy mlp --alpha
6.25 --beta .0052` those of networks do (`python plots.py --table tit-for-tat`). Much later many lose it again. These
are settings of the authors' code (github.com/Silent-Zebra/POLA), whose returns are not multiplied by 1 - discount: at
.96 alpha here is 25 times theirs, and beta theirs over 25. A run writes results/pola_GAME.npz and its figure.
"""

import dataclasses
import inspect
import json
import os
import pathlib
import re
import sys
import tempfile
from argparse import SUPPRESS, ArgumentParser, BooleanOptionalAction, RawDescriptionHelpFormatter
from functools import partial
from typing import Annotated, get_origin, get_type_hints

import chex
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from games import GAMES, Game, evaluate_game, game_of, planar_grid, plays

NAME, SWEEP, SYMBOL, COLOR = "pola", "alpha", r"$\alpha$", "tab:olive"  # of the files, what is swept, in figures


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run, and so all flags, for the IPD; `make_config` has those for other games."""

    game: str = "ipd"  # the game
    payoffs: Annotated[tuple[float, ...], -1e6, 1e6] = ()  # other ones, CC CD DC DD, own action first, for both or each
    discount: Annotated[float | None, 0.0, 0.999] = None  # another one of an iterated game
    policy: Annotated[str, "tabular", "mlp", "preconditioned"] = "tabular"  # what has parameters x, see games.py
    memory: Annotated[int, 1, 2] = 1  # rounds that policies see in iterated games; the default of lr depends on both
    seed: Annotated[int, 0, 2**31 - 1] = 0  # first seed
    num_seeds: Annotated[int, 1, 1000] = 1  # number of seeds, each with policies of its own: seed, seed + 1, ...
    lr: Annotated[float, 1e-9, 1e30] = 20.0  # of best responses and naive learners, 10 times the game's; POLA has none
    alpha: Annotated[tuple[float, ...], 0.0, 1e30] = GAMES["ipd"].alphas  # step that the opponent is imagined to take
    beta: Annotated[float, 0.0, 1e30] = 0.004  # price of a unit of the summed divergence, in units of return
    climb_steps: Annotated[int, 1, 2**31 - 1] = 1000  # gradients of a climb, at most; skewed tables may take 10000
    climb_tolerance: Annotated[float, 0.0, 1e30] = 1e-4  # or until no parameter would change by more
    eval_pairs: Annotated[int, 1, 2**31 - 1] = 64  # policy pairs for each alpha and seed
    eval_steps: Annotated[int, 1, 2**31 - 1] = 20  # steps of all learners, best responses among them

    def __post_init__(self):
        check(self)


def make_config(game: str | Game = "ipd", quick: bool = False, **changes) -> Config:
    """The settings for a game, one of `GAMES` or one's own, with changes."""
    played = game_of(changes | {"game": game})
    # POLA's steps are long and few, and so are those of learners beside it.
    settings = dict(game=getattr(game, "name", game), lr=10 * played.lr, alpha=played.alphas)
    # With this price, where D is half a squared distance, small steps are those of LOLA with the game's lr.
    settings |= dict(eval_pairs=32, eval_steps=200, lr=played.lr, beta=1 / played.lr) if played.planar else {}
    settings |= dict(eval_pairs=16) if quick else {}
    return Config(**settings | changes)


def divergence(game: Game, x: jax.Array, y: jax.Array) -> jax.Array:
    """How far each player's new policy y is from its old one x, by what they do. (2, n), (2, n) -> (2,).

    Where policies are log-odds, the sum over observations of KL(old || new), in nats, as in the authors' code. In games
    such as the Logistic Game, where they are not, half of the squared distance.
    """
    # Parameters of `matrix_game` are log-odds, too: its features are this very function.
    if not game.iterated and game.features is not jax.nn.sigmoid:
        return ((y - x) ** 2).sum(1) / 2
    old, new = game.log_odds(x), game.log_odds(y)
    return (jax.nn.sigmoid(old) * (old - new) + jax.nn.softplus(new) - jax.nn.softplus(old)).sum(1)


def pola_objective(f, x: jax.Array, i: int, own: jax.Array, alpha, beta, distance) -> jax.Array:
    """What player i's new policy y_i = `own`, (n,), is to maximise. (), in units of return.

        f_i(y_i, x_j + alpha d f_j / d x_j (y_i, x_j)) - beta D(x_i, y_i),    with j the other player

    The first term is that of exact LOLA: y_i acts on it through j's step as well. Arguments are those of `pola_step`.
    """
    j, joint = 1 - i, x.at[i].set(own)
    step = alpha * jax.grad(lambda other: f(joint.at[j].set(other))[j])(joint[j])
    return f(joint.at[j].add(step))[i] - beta * distance(x, joint)[i]


def climb(objective, start: jax.Array, steps: int, tolerance: float) -> jax.Array:
    """Gradient ascent to a maximum of the objective, (n,) -> (), from `start`, (n,), on. (n,).

    A step after which the slope points back has passed a top. It is not taken, and the next is half as long; otherwise
    the next is twice as long. So no step size needs to be found. Only slopes are compared: near a top values differ by
    less than rounding. It ends after so many gradients, `steps`, or if the next step would change no parameter by more
    than `tolerance`. (Zhao et al. have fixed step sizes, and stop when policies do not change.)
    """

    def goes_on(state):
        _, slope, size, step = state
        return (step == 0) | ((step < steps) & (size * jnp.abs(slope).max() > tolerance))

    def move(state):
        x, slope, size, step = state
        ahead = x + size * slope
        slope_ahead = jax.grad(objective)(ahead)
        onward = (slope * slope_ahead).sum() >= 0  # not if it is not a number
        x, slope = jnp.where(onward, ahead, x), jnp.where(onward, slope_ahead, slope)
        return x, slope, jnp.where(onward, 2 * size, size / 2), step + 1

    # The first move stays at the start and finds its slope: one gradient less to compile.
    return jax.lax.while_loop(goes_on, move, (start, 0 * start, jnp.array(0.5, start.dtype), 0))[0]


def pola_step(f, x: jax.Array, alpha, beta, distance, steps: int = 1000, tolerance: float = 1e-4) -> jax.Array:
    """The policies that follow x: row i is a maximum of player i's `pola_objective`, found by climbing from x_i.

    Args:
      f: differentiable game, (2, n) -> (2,).
      x: joint policy, (2, n).
      alpha: imagined step of the opponent, (), or one for each player, (2,): i's for row i. At 0 the other stays.
      beta: price of a unit of distance, in units of return. The larger it is, the smaller are steps.
      distance: D, from x to other joint policies, (2, n), (2, n) -> (2,), such as `partial(divergence, game)`.
      steps, tolerance: when to stop, see `climb`.

    Returns:
      (2, n), the new joint policy, not a direction. Not differentiable in reverse.
    """
    x = jnp.asarray(x)
    chex.assert_shape(x, (2, None))
    alpha = jnp.broadcast_to(jnp.asarray(alpha, x.dtype), 2)

    def next_policy(i):
        return climb(lambda own: pola_objective(f, x, i, own, alpha[i], beta, distance), x[i], steps, tolerance)

    return jnp.stack([next_policy(0), next_policy(1)])


def evaluate(key: jax.Array, game: Game, config: Config) -> dict[str, jax.Array]:
    """Evaluate POLA from the policies that `key` draws, at every alpha. Arrays (sweep, ...)."""

    def field(x, alpha):  # lr times it is POLA's step
        distance = partial(divergence, game)
        y = pola_step(game.f, x, alpha, config.beta, distance, config.climb_steps, config.climb_tolerance)
        return (y - x) / config.lr

    play = partial(evaluate_game, key, game, field, lr=config.lr, steps=config.eval_steps, pairs=config.eval_pairs)
    return jax.vmap(play)(jnp.array(config.alpha))


# --- shared: main without training ---
def main(argv=None):
    config, game, args = parse(argv)
    run_on = f"jax {jax.__version__} on {jax.device_count()} x {jax.devices()[0].device_kind}"
    print(described := json.dumps(dataclasses.asdict(config) | {"run_on": run_on}), flush=True)
    over_seeds = jax.vmap(lambda seed: evaluate(jax.random.split(jax.random.key(seed))[1], game, config), out_axes=1)
    results = jax.device_get(jax.jit(over_seeds)(np.arange(config.num_seeds, dtype=np.uint32) + config.seed))
    results |= {"config": described, "sweep": np.ravel(np.float32(getattr(config, SWEEP)))}
    results |= {"grid": np.asarray(planar_grid(game))} if game.planar else {}
    write(args.results, partial(np.savez_compressed, **results))
    figure = Figure(figsize=(2 * len(results["sweep"]) + 1, 5) if game.planar else (20, 6), layout="constrained")
    figure.suptitle(f"{NAME} on {game.name}, {config.num_seeds} seed(s)")
    draw(figure, results, game)
    write(args.figure, partial(figure.savefig, dpi=150))
    print_table(results, game)
    if game.sample and "episodes" in vars(config):
        print("agents followed estimates; returns, best responses and the naive learners beside them are exact")
    print(f"wrote {args.results} and {args.figure}", flush=True)


# --- end shared ---


# --- shared: command line, files, figure and table ---
def check(config):
    """Raise ValueError where a field is out of the range in its type: flag, what it takes. Lists become tuples."""
    for name, hint in list(get_type_hints(Config, include_extras=True).items())[1:]:  # all but the game
        value, takes = getattr(config, name), hint.__metadata__
        if get_origin(hint.__origin__) is tuple:
            object.__setattr__(config, name, value := tuple(np.ravel(value).tolist()))  # jit hashes static arguments
        each = [one for one in np.ravel(value) if one is not None or getattr(Config, name) is not None]
        if not all(one in takes if isinstance(one, str) else takes[0] <= one <= takes[1] for one in each):
            words = " or ".join(takes) if isinstance(takes[0], str) else "numbers from {:g} to {:.10g}".format(*takes)
            raise ValueError(f"{name.replace('_', '-')}: takes {words}, not {' '.join(map(str, each))}")


def parse(argv, **switches):
    """The command line, a flag for each field of Config and for `switches`: (config, game, arguments)."""
    # argparse takes -1e6 for a flag, but not with a space before it.
    argv = [re.sub(r"^-(?=[\d.])", " -", word) for word in (sys.argv[1:] if argv is None else argv)]
    layout = dict(usage=SUPPRESS, formatter_class=RawDescriptionHelpFormatter, add_help=False, allow_abbrev=False)
    parser = ArgumentParser(f"{NAME}.py", description=__doc__, **layout)
    parser.add_argument("--game", default="ipd", choices=sorted(GAMES), help="the game (default: ipd)")
    parser.add_argument("--quick", action="store_true", help="a small run that shows the phenomenon in minutes")
    known = parser.parse_known_args(argv)[0]  # --help shows the defaults that go with these two
    parser.add_argument("-h", "--help", action="help", help="show this and exit")
    parser.add_argument("--out", type=pathlib.Path, default=".", help="where results/ and figures/ go (default: .)")
    for name, settings in switches.items():
        parser.add_argument(f"--{name}", **settings)
    hints, defaults = get_type_hints(Config, include_extras=True), make_config(known.game, known.quick)
    for name, comment in re.findall(r"^    (\w+): .*  # (.*)$", inspect.getsource(Config), re.MULTILINE)[1:]:
        value, takes = getattr(defaults, name), hints[name].__metadata__
        settings = dict(type=type(takes[0]), nargs="+" if isinstance(value, tuple) else None)
        settings = {bool: dict(action=BooleanOptionalAction), str: dict(choices=takes)}.get(type(takes[0]), settings)
        shown = f"{comment} (default: {' '.join(map(str, np.ravel(value))) or None})"
        parser.add_argument(f"--{name.replace('_', '-')}", default=SUPPRESS, help=shown, **settings)
    args = parser.parse_args(argv)
    args.refuse = parser.error
    try:
        config = make_config(**{name: value for name, value in vars(args).items() if name in (*hints, "quick")})
        game = game_of(vars(config))
        args.results = args.out / f"results/{getattr(config, 'name', NAME)}_{game.name}.npz"
        args.figure = args.out / f"figures/{args.results.stem}.png"
        for folder in (args.results.parent, args.figure.parent):
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
    except (ValueError, OSError) as error:
        unwritable = f"out: takes a folder that can be written, not {args.out} ({getattr(error, 'strerror', None)})"
        parser.error(f"argument --{unwritable if isinstance(error, OSError) else error}")
    return config, game, args


def write(path, save):
    """Write a file by `save(path)`, beside its name, where no other run does, and move it into place."""
    part = path.with_name(f"{os.getpid()}.{path.name}")
    try:
        save(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def draw(figure, results: dict, game: Game):
    """Trajectories and basins of planar games (Fig. 2); of others returns (Fig. 3) and policies, for each seat."""
    settings, rows = [f"{setting:g}" for setting in results["sweep"]], plays(results, game)
    if game.planar:
        edge = game.extent * 29 / 28  # each point of the grid in the middle of its cell
        for i, (top, bottom) in enumerate(figure.subplots(2, len(settings), sharex=True, sharey=True, squeeze=False).T):
            for path in results["trajectories"][i, 0]:  # (time, 2), of the first seed; a dot where it ends
                top.plot(*path.T, ".-", color=COLOR, linewidth=0.6, markevery=[-1], markeredgecolor="black")
            in_b = (results["endpoints"][i] > 0).all(-1).mean(0)  # (29, 29), gray where seeds differ
            bottom.imshow(in_b, origin="lower", extent=(-edge, edge) * 2, cmap="gray", vmin=0, vmax=1)
            top.set(title=f"{SYMBOL} = {settings[i]}", ylabel="$x_2$", aspect=1, xlim=(-edge, edge), ylim=(-edge, edge))
            bottom.set(title=f"{in_b.mean():.1%} at $x_1, x_2 > 0$", xlabel="$x_1$", ylabel="$x_2$")
        return
    panels = figure.subplots(len(rows), len(rows[0]) + 1, squeeze=False)
    for seat, (row, (*axes, last)) in enumerate(zip(rows, panels)):
        for axis, (title, agent, other, returns, mean, error) in zip(axes, row):
            axis.errorbar(settings, mean[:, 0], error[:, 0], fmt="o-", color=COLOR, label=agent)
            axis.errorbar(settings, mean[:, 1], error[:, 1], fmt="s--", color="black", label=other)
            axis.plot(settings, returns[..., 0].mean(2), ".-", color=COLOR, linewidth=0.4, markersize=3)  # of each seed
            axis.set(title=title, xlabel=SYMBOL, ylabel="expected return")
            axis.tick_params("x", rotation=45)
            axis.sharey(axes[0])
            axis.legend()
        show = jax.nn.sigmoid if game.iterated else jnp.vectorize(game.features, signature="(p,n)->(p,m)")
        columns = dict(zip(settings, show(results["policies"])[..., seat, :].mean((1, 2))))
        columns |= {"tit-for-tat": [label.endswith(("init", "C")) for label in game.labels]} if game.iterated else {}
        last.imshow(np.transpose([*columns.values()]), cmap="YlGn", aspect="auto", alpha=0.7)
        for (j, i), value in np.ndenumerate([*columns.values()]):
            last.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize="small")
        last.set_xticks(range(len(columns)), columns, rotation=45)
        last.set(title="policies in self-play", xlabel=SYMBOL, yticks=range(len(game.labels)), yticklabels=game.labels)


def print_table(results: dict, game: Game):
    """Means and standard errors of returns, agent : other, over all pairs; shares of the grid that end at B."""
    for row in plays(results, game):
        print(SWEEP.rjust(11), *(f"{agent} : {other}".rjust(34) for _, agent, other, *_ in row))
        for i, setting in enumerate(results["sweep"]):
            fours = (np.stack([mean[i], error[i]], 1).ravel() for *_, mean, error in row)
            print(f"{setting:11g}", *("{:.3f} +- {:.3f} : {:.3f} +- {:.3f}".format(*four).rjust(34) for four in fours))
    if game.planar:
        print("share that ends at x_1, x_2 > 0:", *(f"{share:.3f}" for share in results["basin_fraction"].mean(1)))


if __name__ == "__main__":
    try:
        main()
    except (KeyboardInterrupt, OSError, MemoryError, RuntimeError, AssertionError) as error:  # from outside: a line
        reason = str(error) or isinstance(error, AssertionError) * os.environ.get("JAX_PLATFORMS", "")  # no such one
        if not isinstance(error, BrokenPipeError):  # whoever read the output is gone
            print(f"{NAME}.py: {type(error).__name__} {reason}".splitlines()[0], file=sys.stderr)
        os._exit(130 if isinstance(error, KeyboardInterrupt) else 1)  # after sys.exit JAX may crash, a pipe complain
# --- end shared ---

"""Naive learning: each player follows the gradient of its own return as if the other stood still.

Cooijmans, Aghajohari and Courville, Learning with Learning Awareness using Meta-Values, Sec. 2.1. With the simultaneous
gradient of the game, row i the derivative of f_i by x_i, both players step at once (Eq. 1),

    x(t + 1) = x(t) + lr (d f_1 / d x_1, d f_2 / d x_2)(x(t)).

It is what every other algorithm here is measured against: LOLA with alpha = 0, HOLA(0), and MeVa with gamma = 0.

    python naive.py --game ipd         self-play, best responses: 10 seconds on a 2-core CPU
    python naive.py --game logistic    basins and trajectories: 5 seconds

What to expect on the IPD: defection, -2 a round, whoever the other is. On the Logistic Game: players end at whichever
solution is nearest, split along a diagonal through the origin. A run prints a table and writes
results/naive_GAME.npz and figures/naive_GAME.png.
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

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from games import GAMES, Game, evaluate_game, game_of, planar_grid, plays, simultaneous_gradient

NAME, SWEEP, SYMBOL, COLOR = "naive", "lr", "lr", "tab:gray"  # of the files, what is swept, in figures


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run, and so all flags, for the IPD; `make_config` has those for other games."""

    game: str = "ipd"  # the game
    payoffs: Annotated[tuple[float, ...], -1e6, 1e6] = ()  # other ones, CC CD DC DD, own action first, for both or each
    discount: Annotated[float | None, 0.0, 0.999] = None  # another one of an iterated game
    policy: Annotated[str, "tabular", "mlp", "preconditioned"] = "tabular"  # what has parameters x, see games.py
    memory: Annotated[int, 1, 2] = 1  # rounds that policies see in iterated games; the default of lr depends on both
    episodes: Annotated[int, 0, 2**31 - 1] = 0  # episodes that returns and derivatives are estimated from; 0: exact
    episode_length: Annotated[int | None, 1, 1000000] = None  # rounds of an episode: 150, or 50 with --quick
    baseline: Annotated[bool, False, True] = True  # subtract the other episodes' mean reward, see games.py
    noise: Annotated[float, 0.0, 1e30] = 0.0  # standard deviation of errors of returns and derivatives, of any game
    seed: Annotated[int, 0, 2**31 - 1] = 0  # first seed
    num_seeds: Annotated[int, 1, 1000] = 1  # number of seeds, each with policies of its own: seed, seed + 1, ...
    lr: Annotated[float, 0.0, 1e30] = 2.0  # step size of the policies, the paper's alpha in Eq. 1
    eval_pairs: Annotated[int, 1, 2**31 - 1] = 256  # policy pairs for each seed (Sec. 5.2)
    eval_steps: Annotated[int, 1, 2**31 - 1] = 500  # steps that they are followed for

    def __post_init__(self):
        check(self)


def make_config(game: str | Game = "ipd", quick: bool = False, **changes) -> Config:
    """The settings for a game, one of `GAMES` or one's own, with changes."""
    played = game_of(changes | {"game": game})
    settings = dict(game=getattr(game, "name", game), lr=played.lr)
    settings |= dict(eval_pairs=32, eval_steps=200) if played.planar else {}
    settings |= dict(eval_pairs=16) if quick else {}
    settings |= dict(episode_length=50) if quick and changes.get("episodes") else {}
    return Config(**settings | changes)


def naive_gradient(f, x: jax.Array) -> jax.Array:
    """Naive learning's update direction (Eq. 1): row i is the derivative of f_i by x_i. (2, n) -> (2, n).

    `f`, (2, n) -> (2,), is any differentiable game; units are those of return per unit of policy parameter.
    """
    return simultaneous_gradient(f, x)


def evaluate(key: jax.Array, game: Game, config: Config) -> dict[str, jax.Array]:
    """Evaluate naive learners, of whom nobody looks ahead, from the policies that `key` draws. Arrays (1, ...)."""
    lr, steps, pairs = config.lr, config.eval_steps, config.eval_pairs

    def field(x, strengths, *key):
        return naive_gradient(game.returns(*key), x)

    results = evaluate_game(key, game, field, 0.0, lr, steps, pairs, sampled=game.sample is not None)
    return jax.tree.map(lambda leaf: leaf[None], results)


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

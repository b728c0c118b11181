"""LOLA, learning with opponent-learning awareness: ascend the return after the opponent's next naive step.

Foerster et al. (2018), as in Cooijmans, Aghajohari and Courville, Learning with Learning Awareness using Meta-Values,
App. B. Player 1 looks one naive step of its opponent ahead and differentiates through that step,

    d/dx_1 f_1(x_1, x_2 + alpha d f_2/d x_2 (x_1, x_2)),

and player 2 likewise (Eq. 2, but for the player's own imagined step). `--variant` has the relatives of this exact form,
as `lola_gradient` explains: two Taylor expansions of it, and LookAhead.
Returns here are normalised: on the IPD, alpha = 25 is a step of 1 in code that does not multiply them by 1 - discount.

    python lola.py --game ipd          the paper's Fig. 3b: 15 seconds on a 2-core CPU
    python lola.py --game logistic     the paper's Fig. 2, LOLA's rows: 5 seconds

What to expect on the IPD: defection (-2) at alpha = 0; cooperation around alpha = 10, which no best response exploits;
beyond it lower returns, though naive learners are led ever further. On the Logistic Game: the basin of B, the better of
two solutions, grows from half of the grid to 53 %, and hardly further with a larger alpha. A run prints a table and
writes results/lola_GAME.npz and figures/lola_GAME.png.
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

NAME, SWEEP, SYMBOL, COLOR = "lola", "alpha", r"$\alpha$", "tab:orange"  # of the files, what is swept, in figures


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run, and so all flags, for Fig. 3b on the IPD; `make_config` has those for other games."""

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
    alpha: Annotated[tuple[float, ...], 0.0, 1e30] = GAMES["ipd"].alphas  # look-ahead steps (Eq. 2, App. B)
    variant: Annotated[str, "exact", "taylor", "taylor-stop", "lookahead"] = "exact"  # form of the surrogate
    lookahead: Annotated[int, 1, 20] = 1  # steps alpha g_j of the opponent that are imagined
    eval_pairs: Annotated[int, 1, 2**31 - 1] = 256  # policy pairs for each alpha and seed (Sec. 5.2)
    eval_steps: Annotated[int, 1, 2**31 - 1] = 500  # steps that they are followed for

    def __post_init__(self):
        check(self)


def make_config(game: str | Game = "ipd", quick: bool = False, **changes) -> Config:
    """The settings for a game, one of `GAMES` or one's own, with changes."""
    played = game_of(changes | {"game": game})
    settings = dict(game=getattr(game, "name", game), lr=played.lr, alpha=played.alphas)
    settings |= dict(eval_pairs=32, eval_steps=200) if played.planar else {}
    settings |= dict(eval_pairs=16) if quick else {}
    settings |= dict(episode_length=50) if quick and changes.get("episodes") else {}
    return Config(**settings | changes)


def lola_gradient(f, x: jax.Array, alpha, variant: str = "exact", f_ahead=None, lookahead: int = 1) -> jax.Array:
    """LOLA's update direction (App. B), and those of its relatives. Row i is the derivative by x_i, j the other, of

        exact          f_i(x_i, x_j + alpha g_j(x)), with g_j = d f_j / d x_j the opponent's naive gradient
        lookahead      the same with g_j held constant (Zhang and Lesser, 2010)
        taylor         f_i(x) + (d f_i / d x_j) . alpha g_j(x), the first order of the exact form in j's step
        taylor-stop    the same with d f_i / d x_j held constant, LOLA as published (Foerster et al., 2018)

    Args:
      f: differentiable game, (2, n) -> (2,).
      x: joint policy, (2, n).
      alpha: look-ahead step, (), or one for each player, (2,). At 0 all forms are the naive gradient.
      variant: one of these names, or there is a ValueError.
      f_ahead: what g_j is the gradient of, f itself if None. Where f is an estimate, a second, independent one: Taylor
        forms, products of both, are then unbiased. The others are biased by the variance of g_j, as f is not linear,
        and so are several steps.
      lookahead: how many naive steps the opponent takes against x_i: the sum of all of them stands for alpha g_j. Each
        is one more to compile.

    Returns:
      (2, n), in units of return per unit of policy parameter.
    """
    if variant not in ("exact", "lookahead", "taylor", "taylor-stop"):
        raise ValueError(f"variant: takes exact, lookahead, taylor or taylor-stop, not {variant}")
    x = jnp.asarray(x)
    chex.assert_shape(x, (2, None))
    alpha = jnp.broadcast_to(jnp.asarray(alpha, x.dtype), 2)
    f_ahead = f_ahead or f

    # Each row is a chain of gradients of its own, in which nothing is computed that it does not need.
    def gradient(i, j):  # row i, (n,), with j the other player
        def surrogate(own):
            joint = x.at[i].set(own)

            def derivative(returns, of, other):  # of f_i or f_j, by x_j
                return jax.grad(lambda other: returns(joint.at[j].set(other))[of])(other)

            step = jnp.zeros_like(own)
            for _ in range(lookahead):
                step += alpha[i] * derivative(f_ahead, j, joint[j] + step)
            if variant == "lookahead":
                step = jax.lax.stop_gradient(step)
            if variant in ("exact", "lookahead"):
                return f(joint.at[j].add(step))[i]
            slope = derivative(f, i, joint[j])
            if variant == "taylor-stop":
                slope = jax.lax.stop_gradient(slope)
            return f(joint)[i] + (slope * step).sum()

        return jax.grad(surrogate)(x[i])

    return jnp.stack([gradient(0, 1), gradient(1, 0)])


def evaluate(key: jax.Array, game: Game, config: Config) -> dict[str, jax.Array]:
    """Evaluate LOLA from the policies that `key` draws, at every alpha (Figs. 2, 3b). Arrays (sweep, ...)."""

    def field(x, alpha, key=None):
        f, f_ahead = (game.f, None) if key is None else map(game.returns, jax.random.split(key))
        return lola_gradient(f, x, alpha, config.variant, f_ahead, config.lookahead)

    settings = dict(lr=config.lr, steps=config.eval_steps, pairs=config.eval_pairs, sampled=game.sample is not None)
    return jax.vmap(partial(evaluate_game, key, game, field, **settings))(jnp.array(config.alpha))


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

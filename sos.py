"""SOS, stable opponent shaping: LOLA as far as it does not turn against LookAhead, which it is near fixed points.

Letcher et al., Stable Opponent Shaping in Differentiable Games (2019), in its notation: losses are L = -f, xi is the
simultaneous gradient, xi_i = dL_i / dx_i, H its Jacobian, of blocks H_ij = dxi_i / dx_j, and H_o the same without the
diagonal ones, H_ii. Players descend

    xi_0 - p alpha chi,    with xi_0 = (I - alpha H_o) xi and chi_i = H_ji^T dL_i / dx_j, j the other player:

LookAhead at p = 0 and LOLA (lola.py's `taylor`) at p = 1. SOS takes the p of their Algorithm 1. For small alpha it then
converges locally to stable fixed points (Thm. 4), to fixed points alone (Prop. 5), and almost surely to no strict
saddle (Thm. 6). `--variant` has what it was compared with, as `sos_gradient` explains.
Their code does not multiply returns by 1 - discount. What depends on it, the threshold b and |xi|^2 in p and the offset
in SGA's sign, is computed for f / (1 - discount); alpha = 25 and lr = 25 on the IPD are theirs of 1.

    python sos.py --game ipd           returns over alpha: 20 seconds on a 2-core CPU
    python sos.py --game tandem        the game that SOS was made for: 10 seconds

What to expect on the IPD: defection (-2) at alpha = 0, more cooperation the larger it is (-1.44 at 10, -1.22 at 100),
which best responses exploit. On Tandem LOLA's players push on to where both lose, SOS's stop where naive ones do, at
the default alphas. A run prints a table and writes results/sos_GAME.npz and figures/sos_GAME.png.
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

from games import GAMES, Game, evaluate_game, game_of, planar_grid, plays, simultaneous_gradient

NAME, SWEEP, SYMBOL, COLOR = "sos", "alpha", r"$\alpha$", "tab:brown"  # of the files, what is swept, in figures
VARIANTS = ("sos", "lookahead", "consensus", "sga", "extragradient", "cgd", "lss")


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
    lr: Annotated[float, 0.0, 1e30] = 2.0  # step size of the policies; in Letcher et al. it is alpha itself
    alpha: Annotated[tuple[float, ...], 0.0, 1e30] = GAMES["ipd"].alphas  # look-ahead steps, or weights (CO, SGA)
    variant: Annotated[str, *VARIANTS] = "sos"  # which of the family
    eval_pairs: Annotated[int, 1, 2**31 - 1] = 256  # policy pairs for each alpha and seed
    eval_steps: Annotated[int, 1, 2**31 - 1] = 500  # steps that they are followed for

    def __post_init__(self):
        check(self)


def make_config(game: str | Game = "ipd", quick: bool = False, **changes) -> Config:
    """The settings for a game, one of `GAMES` or one's own, with changes."""
    played = game_of(changes | {"game": game})
    settings = dict(game=getattr(game, "name", game), lr=played.lr, alpha=played.alphas)
    settings |= dict(eval_pairs=32, eval_steps=200) if played.planar else {}
    settings |= dict(eval_pairs=16) if quick else {}
    return Config(**settings | changes)


def sos_gradient(f, x: jax.Array, alpha, variant: str = "sos", scale: float = 1.0) -> jax.Array:
    """The update direction of SOS (Letcher et al., 2019), and those of its family: it ascends, so minus

        sos            xi_0 - p alpha chi, with p from `sos_p`
        lookahead      xi_0 = xi - alpha H_o xi, the first order of lola.py's form (Zhang and Lesser, 2010)
        consensus      xi + alpha H^T xi (Mescheder et al., 2017)
        sga            xi +- alpha A^T xi, with A = (H - H^T) / 2 (Balduzzi et al., 2018)
        extragradient  xi(x - alpha xi) (Korpelevich, 1976)
        cgd            (I + alpha H_o)^-1 xi (Schaefer and Anandkumar, 2019); it can be singular at a large alpha
        lss            xi + H^T H^-1 xi (Mazumdar et al., 2019), with the pseudo-inverse in place of a regularised one

    Args:
      f: differentiable game, (2, n) -> (2,).
      x: joint policy, (2, n).
      alpha: look-ahead step of both players, (); of CO and SGA their gamma and lambda, in published code 1 for losses
        that are not normalised, 25 here on the IPD. At 0 all are the naive gradient but LSS, which does not have it.
      variant: one of these names, or there is a ValueError.
      scale: what f is to be multiplied by for SOS's b and |xi|^2 and SGA's offset. alpha is that of f.

    Returns:
      (2, n), in units of return per unit of policy parameter.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant: takes {', '.join(VARIANTS)}, not {variant}")
    x = jnp.asarray(x)
    chex.assert_shape(x, (2, None))
    chex.assert_shape(alpha := jnp.asarray(alpha, x.dtype) / scale, ())  # below, xi and H are those of `scale` f

    def gradient(x):
        return -scale * simultaneous_gradient(f, x)

    xi, H = jax.linearize(gradient, x)  # H(v) is H v

    def H_o(v):  # row i of H v, but for what v_i contributes
        return jnp.stack([H(v.at[0].set(0))[0], H(v.at[1].set(0))[1]])

    def transposed(linear, v):
        return jax.linear_transpose(linear, v)(v)[0]

    def matrix(linear):  # (2 n, 2 n), not in half a precision
        columns = jax.vmap(linear)(jnp.eye(x.size, dtype=x.dtype).reshape(-1, *x.shape))
        return columns.reshape(x.size, x.size).T.astype(jnp.promote_types(x.dtype, jnp.float32))

    if variant in ("sos", "lookahead"):
        direction = xi - alpha * H_o(xi)
    if variant == "sos":
        others = -scale * simultaneous_gradient(lambda x: f(x)[::-1], x)  # row j is dL_i / dx_j
        chi = transposed(H_o, others)
        direction -= alpha * sos_p(xi, direction, -alpha * chi) * chi
    if variant == "consensus":
        direction = xi + alpha * transposed(H, xi)
    if variant == "sga":
        slope = transposed(H, xi)  # of |xi|^2 / 2
        adjustment = (slope - H(xi)) / 2
        aligned = (xi * slope).sum() * (adjustment * slope).sum() / x.size
        direction = xi + alpha * jnp.sign(aligned + 0.1) * adjustment  # their offset, for where nothing is aligned
    if variant == "extragradient":
        direction = gradient(x - alpha * xi)
    if variant == "cgd":
        system = matrix(lambda v: v + alpha * H_o(v))
        direction = jnp.linalg.solve(system, xi.ravel().astype(system.dtype)).reshape(x.shape).astype(x.dtype)
    if variant == "lss":
        inverse = jnp.linalg.pinv(matrix(H), rtol=1e-5)
        direction = xi + transposed(H, (inverse * xi.ravel()).sum(1).reshape(x.shape).astype(x.dtype))
    return -direction / scale


def sos_p(xi: jax.Array, xi_0: jax.Array, shaping: jax.Array, a: float = 0.5, b: float = 0.1) -> jax.Array:
    """How much of LOLA's `shaping`, -alpha chi, SOS adds to LookAhead's xi_0 (Letcher et al., 2019, Algorithm 1). ().

    The first criterion keeps the sum within a right angle of xi_0, the second makes p vanish near fixed points. One p
    is for both players: all arguments are (2, n).
    """
    along = (shaping * xi_0).sum()
    p_1 = jnp.where(along >= 0, 1, jnp.minimum(1, -a * (xi_0**2).sum() / jnp.where(along >= 0, 1, along)))
    squared = (xi**2).sum()
    p_2 = jnp.where(squared < b**2, squared, 1)
    return jnp.minimum(p_1, p_2)


def evaluate(key: jax.Array, game: Game, config: Config) -> dict[str, jax.Array]:
    """Evaluate SOS from the policies that `key` draws, at every alpha. Arrays (sweep, ...)."""

    def field(x, strengths):  # an agent takes its part of what both would do if both were agents
        return sos_gradient(game.f, x, strengths.max(), config.variant, 1 / (1 - (game.discount or 0)))

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

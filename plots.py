"""The paper's figures and tables, from the results of runs: its claims side by side with our numbers. Trains nothing.

    python plots.py                    every figure that the runs allow, into figures/, and what makes the others
    python plots.py --figure fig3      one of them; --format pdf for papers
    python plots.py --table            the paper's claims, Section 5, beside our numbers
    python plots.py --table ablations  what each technique of Section 4 is good for
    python plots.py --out quick --table games    every algorithm on every game, from small runs of all in quick/results

Runs are looked for in results/ and then, the paper's, in results/paper/; every figure says which it is drawn from. What
is missing is named, with the command that makes it.
"""

import argparse
import json
import os
import pathlib
import tempfile
import typing
import zipfile
from collections.abc import Callable

import jax
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from games import GAMES

COLORS = {"naive": "tab:gray", "lola": "tab:orange", "hola": "tab:green", "cola": "tab:purple", "meva": "tab:blue"}
TITLES = {"naive": "naive", "lola": "LOLA", "hola": "HOLA", "cola": "COLA", "meva": "MeVa"}
A, B = -5.0307, 5.0307  # the Logistic Game's stable fixed points, (A, A) and (B, B)


# The runs


class Run(typing.NamedTuple):
    """A run: `script` on `game` with flags. What a figure or a table needs."""

    script: str
    game: str
    flags: str = ""


SHORT = "--outer-steps 300 --num-seeds 3 --eval-gammas 0.9 0.95 0.99"  # 300 of 2000 outer loops
GAMMAS = "--eval-gammas 0 0.5 0.8 0.85 0.9 0.91 0.92 0.95 0.99"
ABLATIONS = {  # the name of the run, what it says in the table, and the switch
    "all_techniques": ("all techniques", ""),
    "no_exploration": ("no exploration", "--flip-prob 0"),
    "no_target_network": ("no target network", "--target-inertia 0"),
    "lambda_0": (r"$\lambda$ = 0", "--bootstrap 0"),
    "lambda_1": (r"$\lambda$ = 1", "--bootstrap 1"),
    "no_quantiles": ("no quantiles", "--quantiles 1"),
    "fixed_gamma": (r"fixed $\gamma$ = .99", "--fixed-gamma 0.99"),
    "form_v": ("form V", "--form V"),
}
RUNS = {
    "naive_logistic": Run("naive", "logistic"),
    "lola_logistic": Run("lola", "logistic"),
    "hola_logistic": Run("hola", "logistic"),
    "hola3_logistic": Run("hola", "logistic", "--order 3"),
    "cola_logistic": Run("cola", "logistic", "--num-seeds 8"),
    "meva_logistic": Run("meva", "logistic", f"--num-seeds 8 {GAMMAS}"),
    "semi_gradient_logistic": Run("meva", "logistic", f"--semi-gradient --num-seeds 8 {GAMMAS}"),
    "naive_ipd": Run("naive", "ipd", "--num-seeds 8"),
    "lola_ipd": Run("lola", "ipd", "--num-seeds 8"),
    "meva_ipd": Run("meva", "ipd", "--num-seeds 8"),
} | {name: Run("meva", "ipd", f"{SHORT} {switch}".rstrip()) for name, (_, switch) in ABLATIONS.items()}


def command(name: str, out: pathlib.Path = pathlib.Path(".")) -> str:
    """The command that makes a run. One whose files would replace another's has a folder of its own."""
    script, game, flags = RUNS[name]
    folder = out if name == f"{script}_{game}" else out / "variants" / name
    words = [f"python {script}.py --game {game}", flags, "" if folder == pathlib.Path(".") else f"--out {folder}"]
    return " ".join(filter(None, words))


def paths_of(name: str, out: pathlib.Path) -> list[pathlib.Path]:
    """Where a run's results may be: what its command wrote, and the one that is kept with the repository."""
    script, game, _ = RUNS[name]
    folder = out if name == f"{script}_{game}" else out / "variants" / name
    return [folder / f"results/{script}_{game}.npz", out / f"results/paper/{name}.npz"]


def load(path: pathlib.Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def find(names, out: pathlib.Path) -> tuple[dict[str, dict], list[str], list[str]]:
    """The results of these runs by name, the files that they are from, and the commands of those that are missing."""
    found = {name: next((path for path in paths_of(name, out) if path.exists()), None) for name in names}
    runs = {name: load(path) for name, path in found.items() if path}
    return runs, [str(path) for path in found.values() if path], [command(n, out) for n in names if n not in runs]


def at(results: dict, setting: float) -> int:
    """The index of the setting nearest to this one in the sweep of a run."""
    return int(np.abs(results["sweep"] - setting).argmin())


# The figures. Each function draws on an empty figure from the results of its runs, by name.

WIDTH = 6.75  # inches: two columns of a paper
STYLE = {
    "font.size": 7, "axes.titlesize": 7, "axes.linewidth": 0.6, "legend.fontsize": 6, "lines.linewidth": 1,
    "xtick.labelsize": 6, "ytick.labelsize": 6, "pdf.fonttype": 42,
}  # fmt: skip
PLANE = dict(aspect="equal", xlim=(-10, 10), ylim=(-10, 10), xticks=(-10, -5, 0, 5, 10), yticks=(-10, -5, 0, 5, 10))
BAR = dict(shrink=0.8, pad=0.01)  # a color bar beside its panels
LEVELS = np.arange(-5, 4.1, 0.5)  # of return
CELLS = dict(origin="lower", extent=(-290 / 28, 290 / 28) * 2)  # each grid point in the middle of its cell
FIG2 = {  # the rows of Fig. 2: a run, its name, what is swept, and four settings
    "lola_logistic": ("lola", "LOLA", r"$\alpha$", (0, 1, 5, 10)),
    "hola_logistic": ("hola", "HOLA(2)", r"$\alpha$", (0, 1, 5, 10)),
    "cola_logistic": ("cola", "COLA", r"$\alpha$", (0, 1, 5, 10)),
    "meva_logistic": ("meva", "MeVa", r"$\gamma$", (0.8, 0.85, 0.9, 0.95)),
}


def mark_solutions(axis):
    """The names of the two stable fixed points where they are."""
    for where, name in ((A, "A"), (B, "B")):
        axis.text(where, where, name, ha="center", va="center", fontweight="bold",
                  bbox=dict(boxstyle="circle,pad=0.15", facecolor="white", linewidth=0.4))  # fmt: skip


def draw_fig1(figure: Figure, runs: dict):
    """Contours of both players' returns in the Logistic Game, with A and B (Fig. 1)."""
    figure.set_size_inches(WIDTH, 3.2)
    line = np.linspace(-10, 10, 201)
    x = np.stack(np.meshgrid(line, line), -1)[..., None]
    returns = np.asarray(jax.vmap(jax.vmap(GAMES["logistic"].f))(x))  # (x_2, x_1, 2)
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    for player, axis in enumerate(axes):
        image = axis.contourf(line, line, returns[..., player], levels=LEVELS, extend="both")
        axis.contour(line, line, returns[..., player], levels=LEVELS, colors="black", linewidths=0.2, linestyles="-")
        mark_solutions(axis)
        axis.set(title=f"$f_{player + 1}(x)$", xlabel="$x_1$", **PLANE)
    axes[0].set_ylabel("$x_2$")
    figure.colorbar(image, ax=axes, label="return", ticks=range(-5, 5), **BAR)


def fig2_panels(figure: Figure, runs: dict):
    """The panels of Fig. 2, 4 algorithms x 4 settings: (axis, the algorithm, its results, the setting's index)."""
    figure.set_size_inches(WIDTH, WIDTH + 0.2)
    axes = figure.subplots(4, 4, sharex=True, sharey=True)
    for row, (name, (algorithm, label, symbol, settings)) in zip(axes, FIG2.items()):
        row[0].set_ylabel(f"{label}\n$x_2$")
        for axis, setting in zip(row, settings):
            i = at(runs[name], setting)
            axis.set_title(f"{label}, {symbol} = {runs[name]['sweep'][i]:g}")
            yield axis, algorithm, runs[name], i
    for axis in axes[-1]:
        axis.set_xlabel("$x_1$")
    axes[0, 0].set(**PLANE)


def draw_fig2a(figure: Figure, runs: dict):
    """Trajectories from random policies of the first seed, each to the black point at its end (Fig. 2a)."""
    for axis, algorithm, results, i in fig2_panels(figure, runs):
        for path in results["trajectories"][i, 0]:  # (time, 2)
            axis.plot(*path.T, color=COLORS[algorithm], linewidth=0.5)
        axis.plot(*results["trajectories"][i, 0, :, -1].T, "o", color="black", markersize=1.5)
        axis.set_aspect("equal")


def draw_fig2b(figure: Figure, runs: dict):
    """Basins of attraction (Fig. 2b): white ends in x_1, x_2 > 0, at B; gray with some of the models."""
    for axis, _, results, i in fig2_panels(figure, runs):
        in_b = (results["endpoints"][i] > 0).all(-1).mean(0)  # (29, 29)
        axis.imshow(in_b, cmap="gray", vmin=0, vmax=1, **CELLS)
        axis.set_title(f"{axis.get_title()}: {in_b.mean():.1%}")


def draw_fig3(figure: Figure, runs: dict):
    """Returns on the IPD: self-play, best response, naive learner; MeVa above, LOLA below (Fig. 3)."""
    figure.set_size_inches(WIDTH, 4.2)
    panels = {"self_play": ("self-play", "other agent"), "best_response": ("against a best response", "best response")}
    panels["versus_naive"] = ("with a naive learner", "naive learner")
    axes = figure.subplots(2, 3, sharey=True)
    for row, (name, symbol) in zip(axes, (("meva_ipd", r"$\gamma$"), ("lola_ipd", r"$\alpha$"))):
        algorithm, results = name.split("_")[0], runs[name]
        ticks = np.arange(len(results["sweep"]))
        for axis, (key, (heading, other)) in zip(row, panels.items()):
            returns = results[key]  # (S, seed, pair, 2)
            mean = returns.mean((1, 2))
            error = returns.reshape(len(returns), -1, 2).std(1, ddof=1) / (returns.shape[1] * returns.shape[2]) ** 0.5
            axis.plot(ticks, returns.mean(2)[..., 0], color=COLORS[algorithm], linewidth=0.4, alpha=0.5)  # each seed
            lines = ((TITLES[algorithm], COLORS[algorithm], "-"), (other, "black", "--"))
            for player, (label, color, style) in enumerate(lines):
                axis.errorbar(ticks, mean[:, player], error[:, player], color=color, ls=style, capsize=1.5, label=label)
            axis.set(title=heading, xlabel=symbol, ylim=(-2.15, -0.45))
            axis.set_xticks(ticks, [f"{setting:g}" for setting in results["sweep"]], rotation=60)
            axis.legend()
        row[0].set_ylabel("expected return per round")


def draw_basins(figure: Figure, runs: dict):
    """Share of the surveyed area in the basin of B, against alpha or gamma: mean, and every model as a point."""
    figure.set_size_inches(WIDTH / 2, 2.9)
    axis = figure.subplots()
    meva = axis.twiny()
    for name, (algorithm, label, _, _) in FIG2.items():
        results = runs[name]
        kept = results["sweep"] <= 10
        share, x = results["basin_fraction"][kept], results["sweep"][kept]  # (S, seed)
        where = meva if algorithm == "meva" else axis
        where.plot(x, share.mean(1), "o-", markersize=2.5, color=COLORS[algorithm], label=label)
        if algorithm in ("cola", "meva"):  # without a model, the grid's end points are the same with every seed
            where.plot(x, share, ".", markersize=1.5, color=COLORS[algorithm], alpha=0.7)
    axis.axhline(runs["naive_logistic"]["basin_fraction"].mean(), color=COLORS["naive"], ls="--", label="naive")
    axis.set(xlabel=r"look-ahead step $\alpha$ (LOLA, HOLA, COLA)", ylabel="share of the grid that ends at B")
    meva.set_xlabel(r"meta-discount $\gamma$ (MeVa)")
    handles = [*axis.get_legend_handles_labels()[0], *meva.get_legend_handles_labels()[0]]
    axis.legend(handles, [handle.get_label() for handle in handles], loc="center left", bbox_to_anchor=(0.02, 0.72))


STRATEGIES = {0: "all D", 17: "grim", 19: "tit-for-tat", 25: "win-stay", 31: "all C"}  # as binary numbers, C being 1


def strategies(policies: np.ndarray) -> np.ndarray:
    """The nearest deterministic strategy of each policy, as a number: its five bits are init, DD, CD, DC, CC."""
    return (policies > 0) @ np.array([16, 8, 4, 2, 1])


def draw_policies(figure: Figure, runs: dict):
    """How often which of the 32 deterministic strategies meet, after rounding; tit-for-tat with itself is marked."""
    figure.set_size_inches(WIDTH, 4.6)
    panels = {"policies": ("self-play", "other agent"), "response_policies": ("best response", "best response")}
    panels["versus_naive_policies"] = ("shaping", "naive learner")
    axes = figure.subplots(2, 3, sharex=True, sharey=True)
    for row, name, setting, symbol in zip(axes, ("meva_ipd", "lola_ipd"), (0.99, 10), (r"$\gamma$", r"$\alpha$")):
        label, results = TITLES[name.split("_")[0]], runs[name]
        i = at(results, setting)
        for axis, (key, (heading, other)) in zip(row, panels.items()):
            agent, opponent = np.moveaxis(strategies(results[key][i].reshape(-1, 2, 5)), -1, 0)
            counts = np.zeros((32, 32))
            np.add.at(counts, (opponent, agent), 1)
            share = np.where(counts, counts / counts.sum(), np.nan)
            image = axis.imshow(share, origin="lower", cmap="viridis_r", norm="log", vmin=1e-3, vmax=1)
            axis.plot(19, 19, "s", markersize=6, markerfacecolor="none", markeredgecolor="red", markeredgewidth=0.7)
            axis.set(title=f"{label}, {symbol} = {results['sweep'][i]:g}: {heading}", ylabel=other)
            axis.grid(linewidth=0.2)
    axes[0, 0].set_yticks(list(STRATEGIES), STRATEGIES.values())
    for axis in axes[-1]:
        axis.set_xticks(list(STRATEGIES), STRATEGIES.values(), rotation=90)
        axis.set_xlabel("agent")
    figure.colorbar(image, ax=axes, label="share of the policy pairs", **BAR)


def draw_arrows(axis, results: dict, i: int, color):
    """The directions of the first seed's steps on every other grid point."""
    points, steps = results["grid"][::2, ::2], results["field"][i, 0, ::2, ::2]
    length = np.linalg.norm(steps, axis=-1, keepdims=True)
    directions = steps / np.where(length > 0, length, 1)
    style = dict(pivot="mid", scale=20, width=0.006, headwidth=4)
    axis.quiver(*np.moveaxis(points, -1, 0), *np.moveaxis(directions, -1, 0), color=color, **style)


def draw_landscape(figure: Figure, runs: dict):
    """The learned meta-value of player 1 (normalised) on the Logistic Game, and where policies go, first seed."""
    figure.set_size_inches(WIDTH, 1.6)
    results = runs["meva_logistic"]
    gammas = (0, 0.8, 0.9, 0.95, 0.99)
    axes = figure.subplots(1, len(gammas), sharex=True, sharey=True)
    for axis, gamma in zip(axes, gammas):
        i = at(results, gamma)
        values = results["values"][i, 0, ..., 0]
        x_1, x_2 = np.moveaxis(results["grid"], -1, 0)
        image = axis.contourf(x_1, x_2, values, levels=LEVELS, extend="both")
        draw_arrows(axis, results, i, "white")
        axis.set(title=rf"$\hat V_1$, $\gamma$ = {results['sweep'][i]:g}", xlabel="$x_1$", **PLANE)
    axes[0].set_ylabel("$x_2$")
    figure.colorbar(image, ax=axes, label="return", ticks=range(-5, 5), **BAR)


def draw_fields(figure: Figure, runs: dict):
    """Where each algorithm goes from where, and how far, on the Logistic Game; first seed."""
    figure.set_size_inches(WIDTH, 1.6)
    panels = {"naive_logistic": 1} | {name: settings[2] for name, (_, _, _, settings) in FIG2.items()}
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True)
    for axis, (name, setting) in zip(axes, panels.items()):
        results, i = runs[name], at(runs[name], setting)
        length = np.linalg.norm(results["field"][i, 0], axis=-1)
        image = axis.imshow(np.maximum(length, 1e-12), norm="log", vmin=1e-3, vmax=10, cmap="Blues", **CELLS)
        draw_arrows(axis, results, i, "black")
        _, label, symbol, _ = FIG2.get(name, ("", "naive", "", ()))
        axis.set(title=f"{label}, {symbol} = {results['sweep'][i]:g}" if symbol else label, xlabel="$x_1$", **PLANE)
    axes[0].set_ylabel("$x_2$")
    figure.colorbar(image, ax=axes, label="length of a step", **BAR)


def draw_ablations(figure: Figure, runs: dict):
    """Returns at gamma = .99 with one technique of Section 4 changed: every model, mean and standard error."""
    figure.set_size_inches(WIDTH, 2.6)
    axes = figure.subplots(1, 4, width_ratios=(1, 1, 1, 1.2))
    panels = {"self_play": "self-play", "best_response": "best response", "versus_naive": "naive learner"}
    rows = np.arange(len(ABLATIONS))[::-1]
    for axis, (key, heading) in zip(axes, panels.items()):
        for row, name in zip(rows, ABLATIONS):
            agent = returns(runs[name], key, 0.99)[0]  # (seed,)
            axis.plot(agent, np.full(len(agent), row), ".", color=COLORS["meva"], markersize=3, alpha=0.6)
            axis.errorbar(agent.mean(), row, xerr=standard_error(agent), fmt="|", color="black", capsize=2)
        axis.axvline(returns(runs["all_techniques"], key, 0.99)[0].mean(), color="gray", linewidth=0.5)
        axis.set(title=heading, xlabel="the agent's return")
        axis.set_yticks(rows, [label for label, _ in ABLATIONS.values()] if axis is axes[0] else [""] * len(rows))
    for name, label, style in (("meva_logistic", "both sides", "-"), ("semi_gradient_logistic", "semi-gradient", "--")):
        results = runs[name]
        ticks, share = np.arange(len(results["sweep"])), results["basin_fraction"]
        axes[3].plot(ticks, share, ".", color=COLORS["meva"], markersize=2, alpha=0.6)
        axes[3].plot(ticks, share.mean(1), style, color=COLORS["meva"], label=label)
        axes[3].set_xticks(ticks, [f"{gamma:g}" for gamma in results["sweep"]], rotation=60)
    axes[3].set(title="Logistic Game, form V", xlabel=r"$\gamma$", ylabel="share that ends at B")
    axes[3].legend()


# The tables


def standard_error(samples: np.ndarray) -> float:
    return samples.std(ddof=1) / len(samples) ** 0.5 if len(samples) > 1 else np.nan


def shown(number: float) -> str:
    return f"{round(number, 2) + 0:.2f}" if abs(number) < 1e3 else f"{number:.1e}"  # + 0: no negative zero


def spread(samples: np.ndarray) -> str:
    """Mean and standard error over seeds, (seed,)."""
    return f"{samples.mean():.3f} ± {standard_error(samples):.3f}"


def share(results: dict, setting: float) -> np.ndarray:
    """Share of the grid that ends at B, (seed,)."""
    return results["basin_fraction"][at(results, setting)]


def returns(results: dict, key: str, setting: float) -> np.ndarray:
    """Means over policy pairs, the agent's first, (2, seed)."""
    return results[key][at(results, setting)].mean(1).T


def both(results: dict, key: str, setting: float) -> str:
    return " : ".join(map(spread, returns(results, key, setting)))


class Claim(typing.NamedTuple):
    """A sentence of the paper that can be measured, mostly of Section 5, and how: on which runs, and what they say."""

    section: str
    statement: str
    runs: tuple[str, ...]
    measure: Callable[..., tuple[str, bool]]  # the results of each run -> numbers, holds


CLAIMS = []  # filled by `claim`, in the order of the text


def claim(section: str, statement: str, *runs: str):
    """Make a claim of the function below it, which takes the results of these runs."""
    return lambda measure: CLAIMS.append(Claim(section, statement, runs, measure)) or measure


@claim("5.1", "two stable fixed points, A and B; both players prefer B", "naive_logistic")
def both_prefer_b(naive):
    ends = naive["endpoints"][0, 0].reshape(-1, 2)
    settled = {s: ends[np.abs(ends - s).max(-1) < 0.1] for s in (A, B)}
    at_a, at_b = (np.asarray(jax.vmap(GAMES["logistic"].f)(x[..., None])) for x in settled.values())
    count = len(at_a) + len(at_b)
    numbers = f"{count} of {len(ends)} points end at A or B, at returns of {at_a.mean():.3f} or {at_b.mean():.3f}"
    return numbers, at_a.mean() < at_b.mean() and count > 0.99 * len(ends)


@claim(
    "5.1", "naive learners (LOLA, HOLA(2) at alpha = 0) go to whichever is nearest; the basins meet at the diagonal",
    "lola_logistic", "hola_logistic",
)  # fmt: skip
def nearest_solution(lola, hola):
    def agreement(results):
        ends = results["endpoints"][at(results, 0), 0]
        side = results["grid"].sum(-1)  # x_1 + x_2
        off = np.abs(side) > 1e-3  # the diagonal belongs to neither
        return ((ends > 0).all(-1) == (side > 0))[off].mean()

    numbers = agreement(lola), agreement(hola)
    return "{:.1%} and {:.1%} of the points off the diagonal".format(*numbers), min(numbers) > 0.99


@claim("5.1", "LOLA grows the basin of B, but only slightly", "lola_logistic")
def lola_grows(lola):
    before, *after = (share(lola, alpha).mean() for alpha in (0, 1, 2, 5, 10))
    numbers = f"from {before:.3f} to at most {max(after):.3f} (alpha up to 10)"
    return numbers, before < min(after) and max(after) < before + 0.1


@claim("5.1", "increasing LOLA's alpha does not help much", "lola_logistic")
def lola_alpha(lola):
    shares = [share(lola, alpha).mean() for alpha in (1, 2, 5, 10)]
    return "alpha = 1, 2, 5, 10: " + ", ".join(f"{s:.3f}" for s in shares), max(shares) - min(shares) < 0.05


def regions(results: dict, setting: float) -> tuple[float, float]:
    """Share that ends at B of the points at the edges of the grid and of those around the origin, mean over seeds."""
    in_b = (results["endpoints"][at(results, setting)] > 0).all(-1).mean(0)  # (29, 29)
    edge = np.abs(results["grid"]).max(-1) > 8
    origin = np.linalg.norm(results["grid"], axis=-1) < 4
    return in_b[edge].mean(), in_b[origin].mean()


@claim("5.1", "HOLA(2) grows the basin of B around the edges", "hola_logistic")
def hola_edges(hola):
    (before, _), (after, _) = regions(hola, 0), regions(hola, 5)
    return f"beyond 8 of the axes, {before:.3f} at alpha = 0, {after:.3f} at 5", after > before + 0.02


@claim("5.1", "HOLA(2) suffers from instabilities around the origin", "hola_logistic")
def hola_origin(hola):
    lost = {}
    near = np.linalg.norm(hola["grid"], axis=-1) < 4
    for alpha in (0, 10):
        ends = hola["endpoints"][at(hola, alpha), 0][near]
        settled = (np.abs(np.abs(ends) - B) < 0.5).all(-1) & (ends[:, 0] * ends[:, 1] > 0)
        lost[alpha] = 1 - settled.mean()
    numbers = f"within 4 of the origin, {lost[0]:.1%} come to neither A nor B at alpha = 0, {lost[10]:.1%} at 10"
    return numbers, lost[10] > lost[0] + 0.1


@claim("5.1", "HOLA(3) is significantly worse than HOLA(2)", "hola_logistic", "hola3_logistic")
def hola_third(hola, third):
    pairs = [(share(hola, alpha).mean(), share(third, alpha).mean()) for alpha in (1, 2, 5, 10)]
    numbers = ", ".join(f"{b:.3f} ({a:.3f})" for a, b in pairs)
    return f"alpha = 1, 2, 5, 10: {numbers}, HOLA(2) in brackets", all(b < a - 0.05 for a, b in pairs[2:])


@claim("5.1", "COLA makes significant improvements around the edges and around the origin", "cola_logistic")
def cola_regions(cola):
    (edge, origin), (edge_cola, origin_cola) = regions(cola, 0), regions(cola, 10)
    numbers = f"alpha = 0 to 10: edges {edge:.3f} to {edge_cola:.3f}, origin {origin:.3f} to {origin_cola:.3f}"
    return f"{numbers}, all {spread(share(cola, 10))}", edge_cola > edge + 0.02 and origin_cola > origin + 0.02


@claim("5.1", "at gamma > .9 MeVa ends at B from anywhere in the surveyed area", "meva_logistic")
def meva_everywhere(meva):
    above = [gamma for gamma in meva["sweep"] if gamma > 0.9 + 1e-6]
    numbers = ", ".join(f"{spread(share(meva, gamma))} at {gamma:g}" for gamma in above)
    whole = sum((share(meva, gamma) == 1).all() for gamma in above)
    return f"{numbers}; all models the whole of it at {whole} of {len(above)}", whole == len(above)


@claim("5.1", "by increasing gamma the basin of B grows arbitrarily large", "meva_logistic")
def meva_grows(meva):
    mean = meva["basin_fraction"].mean(1)
    numbers = ", ".join(f"{value:.3f} at {gamma:g}" for value, gamma in zip(mean, meva["sweep"]))
    return numbers, mean[-1] > 0.99 and np.diff(mean).min() > -0.01


@claim(
    "1", "MeVa is the only one to find the Pareto-efficient solution regardless of initialisation",
    "lola_logistic", "hola_logistic", "cola_logistic", "meva_logistic",
)  # fmt: skip
def only_meva(lola, hola, cola, meva):
    best = [results["basin_fraction"].mean(1).max() for results in (lola, hola, cola)]
    numbers = "at best LOLA {:.3f}, HOLA(2) {:.3f}, COLA {:.3f}".format(*best)
    return f"{numbers}; MeVa {spread(share(meva, 0.99))} at gamma = .99", max(best) < 1 == share(meva, 0.99).min()


@claim("5.1", "even close to A it is worth moving in a direction that immediately decreases f", "meva_logistic")
def near_a(meva):
    paths = meva["trajectories"][at(meva, 0.95)].reshape(-1, *meva["trajectories"].shape[-2:])  # (pair, time, 2)
    paths = paths[np.linalg.norm(paths[:, 0] - A, axis=-1) < 3]
    value = np.asarray(jax.vmap(jax.vmap(GAMES["logistic"].f))(paths[..., None])).mean(-1)  # (pair, time)
    drop, gain = value[:, 0] - value.min(1), value[:, -1] - value[:, 0]
    numbers = f"gamma = .95, {len(paths)} paths from within 3 of A: returns first fall by {drop.mean():.2f}"
    numbers += f" ({drop.min():.2f} to {drop.max():.2f}), and end {gain.mean():.2f} higher"
    return numbers, drop.min() > 0 and gain.min() > 3


@claim("5.2", "MeVa at low gamma: mostly defective strategies that approach -2", "meva_ipd")
def low_gamma(meva):
    value = returns(meva, "self_play", 0)[0]
    return f"gamma = 0: {spread(value)}", abs(value.mean() + 2) < 0.05


@claim("5.2", "as gamma increases cooperation becomes more prevalent, with returns approaching -1", "meva_ipd")
def cooperation_grows(meva):
    means = {gamma: returns(meva, "self_play", gamma)[0] for gamma in (0, 0.5, 0.8, 0.9, 0.95, 0.99)}
    numbers = ", ".join(f"{spread(value)} at {gamma:g}" for gamma, value in means.items())
    return numbers, all(np.diff([value.mean() for value in means.values()]) > -0.02) and means[0.99].mean() > -1.1


@claim("5.2", "a best response to MeVa is to cooperate", "meva_ipd")
def unexploitable(meva):
    numbers = "; ".join(f"{both(meva, 'best_response', gamma)} at {gamma:g}" for gamma in (0.9, 0.95, 0.99))
    agent, response = returns(meva, "best_response", 0.99).mean(-1)
    return f"agent : best response {numbers}", agent > -1.2 and abs(response + 1) < 0.15


@claim("5.2", "(the same, the best response being exact)", "meva_ipd")
def unexploitable_exactly(meva):
    numbers = "; ".join(f"{both(meva, 'exact_best_response', gamma)} at {gamma:g}" for gamma in (0.9, 0.95, 0.99))
    return numbers, returns(meva, "exact_best_response", 0.99)[0].mean() > -1.2


@claim("5.2", "who cooperates or defects unconditionally gets -3 or -2 from a best response")
def unconditional():
    f, (cooperate, defect) = GAMES["ipd"].f, (np.full(5, 50, np.float32), np.full(5, -50, np.float32))
    agents = [float(f(np.stack([agent, defect]))[0]) for agent in (cooperate, defect)]
    return "{:.3f} or {:.3f}".format(*agents), np.allclose(agents, (-3, -2), atol=1e-3)


@claim("5.2", "MeVa shapes naive opponents into exploitable cooperation as gamma goes to 1", "meva_ipd")
def shaping(meva):
    numbers = "; ".join(f"{both(meva, 'versus_naive', gamma)} at {gamma:g}" for gamma in (0, 0.9, 0.95, 0.99))
    led = [returns(meva, "versus_naive", gamma) for gamma in (0.9, 0.95, 0.99)]  # (2, seed) each
    before = returns(meva, "versus_naive", 0)[1].mean()
    return f"agent : naive {numbers}", all(agent.mean() > other.mean() > before for agent, other in led)


@claim("5", "MeVa does not simply cooperate but learns tit-for-tat", "meva_ipd")
def tit_for_tat(meva):
    i = at(meva, 0.95)
    cooperate = (1 / (1 + np.exp(-meva["policies"][i].astype(float)))).mean((1, 2))  # (seed, 5)
    states = zip(("at first", "after DD", "CD", "DC", "CC"), cooperate.T)
    numbers = ", ".join(f"{state} {spread(value)}" for state, value in states)
    mean = cooperate.mean(0)
    return f"gamma = .95, P(C): {numbers}", bool((mean[[0, 3, 4]] > 0.5).all() and (mean[[1, 2]] < 0.5).all())


@claim("5.2", "naive learning fails to find tit-for-tat, and defects", "naive_ipd")
def naive_fails(naive):
    value = returns(naive, "self_play", 0)[0]
    return spread(value), value.mean() < -1.9


@claim("5.2", "LOLA exhibits qualitatively the same results", "lola_ipd")
def lola_alike(lola):
    keys = {"self_play": "self-play", "best_response": "agent : best response", "versus_naive": "agent : naive"}
    numbers = "; ".join(f"{words} {both(lola, key, 10)}" for key, words in keys.items())
    held = returns(lola, "self_play", 10)[0].mean() > -1.2 and returns(lola, "best_response", 10)[0].mean() > -1.2
    agent, other = returns(lola, "versus_naive", 10).mean(-1)
    return f"alpha = 10: {numbers}", bool(held and agent > other)


@claim("5.2", "LOLA's alpha can only be increased so far before results deteriorate", "lola_ipd")
def lola_deteriorates(lola):
    numbers = [returns(lola, "self_play", alpha)[0] for alpha in (10, 20, 30)]
    words = f"self-play at alpha = 10, 20, 30: {', '.join(map(spread, numbers))}"
    return words, numbers[0].mean() > max(value.mean() for value in numbers[1:]) + 0.1


@claim("5.2", "MeVa is easier to extend farther into the future", "meva_ipd")
def meva_far(meva):
    numbers = [returns(meva, "self_play", gamma)[0] for gamma in (0.99, 0.995, 0.999)]
    words = f"self-play at gamma = .99, .995, .999: {', '.join(map(spread, numbers))}"
    return words, all(value.mean() > -1.1 for value in numbers)


def print_claims(out: pathlib.Path) -> list[str]:
    """The paper's claims beside our numbers, in Markdown. Returns the commands of missing runs."""
    runs, files, missing = find(list(dict.fromkeys(name for claim in CLAIMS for name in claim.runs)), out)
    print(f"from {', '.join(files)}\n")
    print("| Sec. | the paper | here | holds | `python` |\n|---|---|---|---|---|")
    for claim in CLAIMS:
        if runs.keys() >= set(claim.runs):
            numbers, holds = claim.measure(*(runs[name] for name in claim.runs))
            words = "<br>".join(f"`{command(name).removeprefix('python ')}`" for name in claim.runs) or "`plots.py`"
            print(f"| {claim.section} | {claim.statement} | {numbers} | {'yes' if holds else '**no**'} | {words} |")
    return missing


def print_ablations(out: pathlib.Path) -> list[str]:
    """Returns at gamma = .99 with one technique changed, and the Logistic Game's basins, in Markdown."""
    runs, files, missing = find([*ABLATIONS, "meva_logistic", "semi_gradient_logistic"], out)
    print(f"from {', '.join(files)}, at gamma = .99\n")
    print("| | self-play | agent : best response | agent : naive learner | `python` |\n|---|---|---|---|---|")
    for name, (label, _) in ABLATIONS.items():
        if name in runs:
            cells = [spread(returns(runs[name], "self_play", 0.99)[0])]
            cells += [both(runs[name], key, 0.99) for key in ("best_response", "versus_naive")]
            words = f"`{command(name).removeprefix('python ')}`"
            print(f"| {label} | {' | '.join(cells)} | {words} |")
    for name in ("meva_logistic", "semi_gradient_logistic"):
        if name in runs:
            sweep = runs[name]["sweep"]
            if name == "meva_logistic":
                print("\nThe Logistic Game: share of the grid that ends at B, for each gamma\n")
                print(f"| `python` | {' | '.join(f'{gamma:g}' for gamma in sweep)} |\n|{'---|' * (len(sweep) + 1)}")
            cells = " | ".join(spread(share(runs[name], gamma)) for gamma in sweep)
            print(f"| `{command(name).removeprefix('python ')}` | {cells} |")
    return missing


# Every algorithm on every game, from small runs

HEADINGS = {  # what is played, and the heading, which says whose returns stand beside the colon
    "self_play": "In self-play, player 1 : player 2",
    "best_response": "The agent : its best response, which learned while the agent stood still",
    "versus_naive": "The agent : a naive learner, which learned beside it",
}


def find_games(out: pathlib.Path) -> tuple[dict[tuple[str, str], dict], list[str]]:
    """The results of every algorithm on every game that was run, and the commands that make the others."""
    paths = {(game, algorithm): out / f"results/{algorithm}_{game}.npz" for game in GAMES for algorithm in TITLES}
    runs = {key: load(path) for key, path in paths.items() if path.exists()}
    missing = [key for key in paths if key not in runs]
    return runs, [f"python {algorithm}.py --game {game} --quick --out {out}" for game, algorithm in missing]


def chosen(algorithm: str, results: dict) -> int:
    """Which of its sweep to show: gamma = .99 or what is nearest, or the largest look-ahead up to 10, if any."""
    sweep = results["sweep"]
    return at(results, 0.99) if algorithm == "meva" else int(np.where(sweep <= 10, sweep, -1).argmax())


def cell(results: dict, key: str, setting: int) -> str:
    """Means and standard errors of the returns over all policy pairs of all seeds, the agent's first; by seats."""
    seats = []
    for seat in ("", "_2"):
        if key + seat in results:
            samples = results[key + seat][setting].reshape(-1, 2)
            lost = ~np.isfinite(samples).all(1)
            if lost.any():
                seats.append(f"{lost.sum()} of {len(lost)} pairs diverged")
                continue
            pairs = zip(samples.mean(0), map(standard_error, samples.T))
            seats.append(" : ".join(f"{shown(mean)} ± {shown(error)}" for mean, error in pairs))
    return "<br>".join(seats)


def print_games(out: pathlib.Path) -> list[str]:
    """Game x algorithm: returns in self-play, against a best response, and with a naive learner, in Markdown."""
    runs, missing = find_games(out)
    print("LOLA, HOLA and COLA at the largest look-ahead up to 10 of each run, MeVa at gamma = .99.")
    for key, heading in HEADINGS.items():
        print(f"\n{heading}:\n\n| | {' | '.join(TITLES.values())} |\n|{'---|' * (1 + len(TITLES))}")
        for game in GAMES:
            cells = []
            for algorithm in TITLES:
                results = runs.get((game, algorithm))
                cells.append(cell(results, key, chosen(algorithm, results)) if results else "")
            print(f"| `{game}` | {' | '.join(cells)} |")
    return missing


def draw_games(figure: Figure, runs: dict[tuple[str, str], dict]):
    """The training of MeVa and COLA on every game: returns, and errors in units of the game's own payoffs."""
    curves = {("meva", "self_play_curve"): "MeVa: self-play return", ("meva", "td_error"): "MeVa: TD error",
              ("cola", "loss"): "COLA: consistency loss"}  # fmt: skip
    columns = (len(GAMES) + 1) // 2  # in two bands
    figure.set_size_inches(1.6 * columns, 7)
    bands = figure.subfigures(2, 1)
    for band, names in zip(bands, (list(GAMES)[:columns], list(GAMES)[columns:])):
        axes = band.subplots(len(curves), columns)
        for row, ((algorithm, key), label) in zip(axes, curves.items()):
            row[0].set_ylabel(label)
            for axis, game in zip(row, names):
                if (game, algorithm) in runs:
                    curve = runs[game, algorithm][key]  # (seed, step)
                    steps = json.loads(str(runs[game, algorithm]["config"]))["outer_steps"]
                    axis.plot(np.linspace(0, steps, curve.shape[1] + 1)[1:], curve.T, color=COLORS[algorithm], lw=0.6)
                    axis.set_yscale("linear" if key == "self_play_curve" else "log")
            for axis in row[len(names) :]:
                axis.remove()
        for axis, game in zip(axes[0], names):
            axis.set_title(game)
        for axis in axes[-1, : len(names)]:
            axis.set_xlabel("outer loops")


# The command line

LOGISTIC = tuple(FIG2)
FIGURES = {  # how each is drawn, and from which runs; games has its own
    "fig1": (draw_fig1, ()),
    "fig2a": (draw_fig2a, LOGISTIC),
    "fig2b": (draw_fig2b, LOGISTIC),
    "fig3": (draw_fig3, ("meva_ipd", "lola_ipd")),
    "basins": (draw_basins, ("naive_logistic", *LOGISTIC)),
    "policies": (draw_policies, ("meva_ipd", "lola_ipd")),
    "landscape": (draw_landscape, ("meva_logistic",)),
    "fields": (draw_fields, ("naive_logistic", *LOGISTIC)),
    "ablations": (draw_ablations, (*ABLATIONS, "meva_logistic", "semi_gradient_logistic")),
}
TABLES = {"paper": print_claims, "ablations": print_ablations, "games": print_games}


def save(draw, runs: dict, path: pathlib.Path):
    """Draw and write a figure: beside its name and moved into place, so that none is ever half written."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(layout="constrained")
        draw(figure, runs)
        part = path.with_name(path.name + ".part")
        figure.savefig(part, format=path.suffix[1:], dpi=200)
    os.replace(part, path)


def draw_figure(name: str, out: pathlib.Path, extension: str) -> list[str]:
    """Draw a figure if its runs are there. Returns the commands that make those that are missing."""
    path = out / f"figures/{name}.{extension}"
    if name == "games":
        (runs, missing), files, draw = find_games(out), [str(out / "results")], draw_games
    else:
        draw, names = FIGURES[name]
        runs, files, missing = find(names, out)
    if not missing:
        save(draw, runs, path)
        print(f"wrote {path}" + f", from {', '.join(files)}" * bool(files))
    return missing


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [*FIGURES, "games"]
    parser.add_argument("--figure", choices=names, metavar="NAME", help=f"one of {', '.join(names)} (default: all)")
    parser.add_argument("--format", choices=("png", "pdf"), default="png", help="of the figures (default: png)")
    parser.add_argument(
        "--table", choices=list(TABLES), nargs="?", const="paper", metavar="NAME",
        help=f"print a table instead: {', '.join(TABLES)} (default: paper)",
    )  # fmt: skip
    parser.add_argument("--out", type=pathlib.Path, default=".", help="where results/ and figures/ are (default: .)")
    args = parser.parse_args(argv)
    if args.table and args.figure:
        parser.error("argument --table: takes no --figure beside it")
    try:
        if args.table:
            missing = {args.table: TABLES[args.table](args.out)}
        else:
            folder = args.out / "figures"
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()  # found before anything is drawn
            chosen_names = [args.figure] if args.figure else names
            missing = {name: draw_figure(name, args.out, args.format) for name in chosen_names}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        parser.exit(2, f"{parser.prog}: error: argument --out: takes a folder of whole results ({error})\n")
    if not (args.figure or args.table) and missing["games"]:
        count = len(missing.pop("games"))
        print(f"missing for games: {count} small runs; python plots.py --figure games names them")
    for line in dict.fromkeys(line for lines in missing.values() for line in lines):  # each once
        waiting = ", ".join(name for name, lines in missing.items() if line in lines)
        print(f"missing for {waiting}: {line}")
    if args.figure and missing[args.figure]:
        parser.exit(1)


if __name__ == "__main__":
    main()

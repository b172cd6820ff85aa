"""How many steps a sampler needs: accuracy and time against calls of the network, for one trained model."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from fastcrystal.sampling.generator import CrystalGenerator
from fastcrystal.structure.match import match_many
from fastcrystal.training.tasks import draw_test_set, make_splits
from fastcrystal.utils.files import write_json
from fastcrystal.utils.settings import updated
from fastcrystal.utils.tables import markdown_table

#: sampler -> steps that are tried; Heun and midpoint call the network twice a step, rk4 four times
FLOW_STEPS: dict[str, tuple[int, ...]] = {
    "euler": (1, 2, 5, 10, 25, 50, 100),
    "midpoint": (5, 10, 25, 50),
    "heun": (5, 10, 25, 50),
    "rk4": (3, 5, 10, 25),
}
DIFFUSION_STEPS: dict[str, tuple[int, ...]] = {
    "ddim": (5, 10, 25, 50, 100),
    "dpmpp_2m": (5, 10, 25, 50),
    "ddpm": (10, 25, 50, 100),
}


def few_steps(run: Path, out: Path, max_test: int = 400, device: str = "auto", jobs: int | None = None) -> str:
    """Sample the test crystals of a run with fewer and more steps, and evaluate.

    Parameters
    ----------
    run : Path
        Run folder of flow matching or diffusion.
    out : Path
        Folder for few_steps.md, few_steps.json and few_steps.png.
    max_test : int
        Most test crystals.
    device : str
    jobs : int, optional
        Processes that match crystals; all cores where not given.

    Returns
    -------
    str
        The table.

    Raises
    ------
    ValueError
        If the run cannot be read, or is a regression, which takes one step.
    """
    trained = CrystalGenerator.from_run(run, device)
    config = updated(trained.config, {"data": {"max_test": max_test}})
    if config.algo == "regression":
        raise ValueError(f"{run} is a regression: it takes one step in any case")
    asked = draw_test_set(make_splits(config), config)
    initial = None if asked.initial is None else asked.initial.batch()
    tried = DIFFUSION_STEPS if config.diffuses else FLOW_STEPS
    # threads and caches before the first timing
    trained.sample(asked.conditions, initial=initial, steps=1)
    rows, made = [], []
    for sampler, steps in ((s, n) for s, counts in tried.items() for n in counts):
        started = time.perf_counter()
        made.append(trained.sample(asked.conditions, initial=initial, sampler=sampler, steps=steps, progress=True))
        seconds = (time.perf_counter() - started) / len(asked.target)
        # where the network gives the data, the last step of Heun and of Runge-Kutta is Euler's
        ends = config.predicts_data
        calls = {"midpoint": 2 * steps, "heun": 2 * steps - ends, "rk4": 4 * steps - 3 * ends}.get(sampler, steps)
        rows.append({"sampler": sampler, "steps": steps, "calls": calls, "seconds_per_crystal": seconds})
    true = asked.target.batch()
    for row, match in zip(rows, match_many([(batch, true) for batch in made], jobs=jobs), strict=True):
        row |= {"fit": match.rate_fit(), "rms": match.rate_rms(), "rmse": match.rmse()}
    about = {
        "run": run.name,
        "algo": config.algo,
        "training_step": trained.step,
        "crystals": len(true),
        "device": str(trained.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
    out.mkdir(parents=True, exist_ok=True)
    text = table(rows)
    (out / "few_steps.md").write_text(text + "\n", encoding="utf-8")
    write_json(out / "few_steps.json", {**about, "rows": [{k: _finite(v) for k, v in row.items()} for row in rows]})
    draw(rows, out / "few_steps.png")
    return f"{text}\n\nwritten to {out}"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and value != value else value


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, one row a sampler and number of steps."""
    cells = [
        (
            *(r["sampler"], r["steps"], r["calls"], f"{1e3 * r['seconds_per_crystal']:.1f}"),
            *(f"{100 * r['fit']:.1f} %", f"{100 * r['rms']:.1f} %", f"{r['rmse']:.4f}"),
        )
        for r in rows
    ]
    return markdown_table(cells, ["sampler", "steps", "calls of the network", "ms a crystal", "fit", "rms", "RMSE"])


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Both match rates against calls of the network."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axis = figure.subplots()
    for sampler in dict.fromkeys(r["sampler"] for r in rows):
        own = [r for r in rows if r["sampler"] == sampler]
        calls = [r["calls"] for r in own]
        (line,) = axis.plot(calls, [100 * r["fit"] for r in own], marker="o", label=f"{sampler}, fit")
        axis.plot(
            calls, [100 * r["rms"] for r in own], marker="s", ls="--", color=line.get_color(), label=f"{sampler}, rms"
        )
    axis.set(xscale="log", xlabel="calls of the network", ylabel="test crystals that match, %", ylim=(0, 100))
    axis.grid(alpha=0.2)
    axis.legend(frameon=False, ncols=2)
    figure.savefig(path, dpi=130)

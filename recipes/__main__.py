"""`python -m recipes NAME --out DIR --seed S`: make one lab model from scratch."""

import json
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from recipes.frames import Log
from strive.lab.models import lab_model_names

app = typer.Typer(add_completion=False)

Name = Annotated[str, typer.Argument(help="siglip2, llava_ov, qwen2_5_vl or qwen3_vl")]
Out = Annotated[Path, typer.Option(help="folder to write")]
Seed = Annotated[int, typer.Option(help="initial weights, scenes and their order")]
MeasureClips = Annotated[
    int, typer.Option(help="clips of the world that it is measured on; 0 measures nothing")
]
MeasureOnly = Annotated[bool, typer.Option(help="only measure the folder that is there")]
WorldSeed = 0


@app.command()
def make(
    name: Name,
    out: Out,
    seed: Seed = 0,
    measure_clips: MeasureClips = 500,
    measure_only: MeasureOnly = False,
) -> None:
    """Train a lab model, save its folder, measure it on held-out clips, and note it all beside."""
    if name not in lab_model_names():
        raise typer.BadParameter(f"'{name}' is not one of {', '.join(lab_model_names())}")
    started = time.monotonic()

    def log(line: str) -> None:
        print(f"{time.monotonic() - started:6.0f}s {line}", flush=True)

    out.mkdir(parents=True, exist_ok=True)
    recipe_file = out / "recipe.json"
    if measure_only:
        recipe: dict[str, Any] = json.loads(recipe_file.read_text())
    else:
        recipe = train(name, out, seed=seed, log=log)
    recipe_file.write_text(json.dumps(recipe, indent=1) + "\n")
    if measure_clips:
        recipe["measured"] = measure(name, out, measure_clips, log=log)
        recipe_file.write_text(json.dumps(recipe, indent=1) + "\n")
    for file in out.iterdir():
        file.chmod(0o644)
    log(json.dumps(recipe.get("measured", {}), indent=1))


def train(name: str, out: Path, *, seed: int, log: Log) -> dict[str, Any]:
    """Run the recipe of one lab model; returns what was used and measured while training."""
    if name == "siglip2":
        from recipes.siglip2 import train_siglip2

        return train_siglip2(out, seed=seed, log=log)
    if name == "llava_ov":
        from recipes.llava_ov import train_llava_ov

        return train_llava_ov(out, seed=seed, log=log)
    from recipes.policy import train_policy

    return train_policy(name, out, seed=seed, log=log)


def measure(name: str, out: Path, num_clips: int, *, log: Log) -> dict[str, Any]:
    """Measure a folder on the held-out clips of a world that is built for the purpose."""
    from recipes.measure import world_questions

    with tempfile.TemporaryDirectory() as scratch:
        records, clips = world_questions(
            Path(scratch), num_clips=num_clips, seed=WorldSeed, splits=("held_out",)
        )
        log(f"measuring on {len(records)} questions of {len(clips)} held-out clips")
        measured: dict[str, Any]
        if name == "siglip2":
            from recipes.siglip2 import measure_siglip2

            measured = dict(measure_siglip2(out, records, clips))
        elif name == "llava_ov":
            from recipes.llava_ov import measure_llava_ov

            measured = dict(measure_llava_ov(out, records, clips))
        else:
            from recipes.policy_measure import measure_policy

            measured = dict(measure_policy(out, records, clips))
    return {"world": {"num_clips": num_clips, "seed": WorldSeed, "split": "held_out"}, **measured}


if __name__ == "__main__":
    app()

"""The command ``tisynth``: one sub-command for each command of ``scripts``."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

# name -> (module of scripts, what it does); a module is imported when its command is called
COMMANDS = {
    "import": ("import_data", "bring data of other formats into this project's layout"),
    "check": ("check_data", "look a data set over: classes, numbering, near-copies, prompts"),
    "train": ("train", "train a model that paints satellite images from mask, reference and text"),
    "distill": ("distill", "make of a trained model one that paints in 4 to 8 steps"),
    "synthesize": ("inference", "paint images of known masks in the style of references"),
    "scene": ("scene", "paint a mask of any size, by overlapping windows"),
    "web": ("web", "a page in the browser to paint masks on, and to see the images"),
    "allot": ("allot", "say which masks are painted how often, and after which references"),
    "filter": ("filter", "drop the pixels of painted images that a segmentor finds wrong"),
    "resample": ("resample", "keep the painted images that help, as a training set"),
    "layouts": ("layouts", "make new masks of real pieces, towards class shares that you name"),
    "segmentor": ("segmentor", "train or test a segmentor, or predict masks with one (train|test|predict)"),
    "improve": (
        "improve",
        "the closed loop: paint where a segmentor is weak, train it again, until that brings nothing",
    ),
    "compare": ("compare", "segmentors trained with and without painted images, over several seeds"),
    "evaluate-samples": ("evaluate_samples", "measure painted images: agreement with masks, FID, copies"),
    "contact-sheet": ("contact_sheet", "one picture of masks, references and painted images"),
    "init-checkpoint": (
        "init_checkpoint",
        "make a start checkpoint of Stable Diffusion's weights, or a smaller model's",
    ),
    "export-diffusers": ("export_diffusers", "write a model as a folder that diffusers loads without this project"),
    "import-diffusers": ("import_diffusers", "make a checkpoint and a YAML file of such a folder"),
    "benchmark": ("benchmark", "measure time and memory of training and synthesis"),
    "count-memory": ("count_memory", "count the memory of training and synthesis, without a GPU"),
    "stats": ("stats", "measure the bands of a training set's images: ranges for models of 16 bits and many bands"),
    "train-vae": ("train_vae", "train the first stage, pixels to latents and back"),
    "evaluate-first-stage": ("evaluate_first_stage", "measure what images lose in a first stage's round trip"),
    "train-dvae": ("train_dvae", "train GSS's discrete VAE on masks"),
    "convert-dvae": ("convert_dvae", "turn published dVAE weights into safetensors"),
    "palette-search": ("posterior_learning", "search far-apart colors for the classes (GSS's maskige)"),
    "merge-gss": ("merge_gss", "join the two stages of a GSS-FT-W training"),
}


def main() -> None:
    """Runs a sub-command, or lists them; exit code 2 for one that does not exist."""
    given = sys.argv[1:2]
    if not given or given[0] in ("-h", "--help"):
        print("tisynth COMMAND ...      (options: tisynth COMMAND --help)\n")
        for name, (_, does) in COMMANDS.items():
            print(f"  {name:<22}{does}")
        print(f"  {'configs':<22}print the folder of the configurations that come with it")
        sys.exit(0 if given else 2)
    if given[0] == "--version":
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(version("tisynth"))
        except PackageNotFoundError:
            print("a checkout, not installed")
        sys.exit(0)
    if given[0] == "configs":
        here = Path(__file__).resolve().parent
        print(next(folder for folder in (here / "configs", here.parent / "configs") if folder.is_dir()))
        sys.exit(0)
    if given[0] not in COMMANDS:
        print(f"error: {given[0][:60]!r} is no command of tisynth (tisynth --help lists them)", file=sys.stderr)
        sys.exit(2)

    import tisynth.common.command as command

    command.program = f"tisynth {given[0]}"
    for name, (module, _) in COMMANDS.items():
        command.spoken_as |= {f"python -m scripts.{module}": f"tisynth {name}", f"bash {module}.sh": f"tisynth {name}"}
    command.spoken_as["-m scripts."] = "-m tisynth.scripts."
    del sys.argv[1]
    # as the main module, so that processes that a training starts (one for each GPU) start the same way
    runpy.run_module(f"tisynth.scripts.{COMMANDS[given[0]][0]}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

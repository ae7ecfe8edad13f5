r"""Trains a segmentor, paints images where it is weak, trains it again with them, until that brings nothing more.

A round: masks by hardness and references that suit them (and new layouts, if asked for) -> images, guided by the
segmentor if asked for -> filter -> re-sampling -> a segmentor trained on real and painted images -> its score on scenes
of the training set that are held out. These scores choose everything. The test sets are looked at once, at the end:
the best round's images against real images alone, over several seeds.

  bash improve.sh DATA OUT --config model.yaml --ckpt model.safetensors --segmentor configs/mmseg/tiny.py \
      --painting "--ddim-steps 20 --scale 2" --training "--max-iters 2000" --splits test target

OUT/improve.html shows all rounds; OUT/round_N has each stage's log. The same command goes on where it was stopped.
--dry-run shows the commands of a round. Words of --training go to those of train, test and compare that know them.
Several GPUs: --gpus 0,1,2,3 paints on all, --processes 4 trains on all; on SLURM see demo/improve.sbatch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cldm.synthesis.command_line import PublishedSynthesisOptions
from cldm.synthesis.records import records
from cldm.synthesis.saving_options import PRESETS
from common.command import read_options, run
from common.options import Options
from evaluation.compare import CompareOptions
from evaluation.improve.options import ImproveOptions
from evaluation.improve.run import improve
from post_processing.allot import AllotOptions
from post_processing.filter_options import FilterOptions
from post_processing.layout_folder import LayoutsOptions
from post_processing.resample import ResampleOptions
from scripts import segmentor


def reader(options: type[Options]) -> Callable[[Sequence[str]], Options]:
    """How a command with these options reads its words."""
    return lambda words: read_options(options, "", words)


READERS: dict[str, Callable[[Sequence[str]], object]] = {
    "allot": reader(AllotOptions),
    "compare": reader(CompareOptions),
    "filter": reader(FilterOptions),
    "inference": lambda words: read_options(PublishedSynthesisOptions, "", words, presets=PRESETS),
    "layouts": reader(LayoutsOptions),
    "resample": reader(ResampleOptions),
    "segmentor": segmentor.parsed,
}


def main(words: Sequence[str] | None = None) -> None:
    """Parses, goes round, tells."""
    print(improve(read_options(ImproveOptions, __doc__ or "", words), records, readers=READERS))


if __name__ == "__main__":
    run(main)

"""Where things are computed, and what ends with what, on machines that tests do not have."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cldm.diffusers_export.remote.tisynth_vae import BlockAutoencoder
from cldm.synthesis.judging import mask_scores
from ldm.training import ranks


def test_a_judge_looks_where_the_model_paints():
    seen = []

    class Judge:
        def look(self, images):
            seen.append(images.device.type)
            return torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long)

        def labels(self, mask, size):
            return np.zeros(size, np.uint8)

    image = np.zeros((1, 4, 4, 3), np.uint8)
    assert mask_scores(Judge(), image, ["a.png"], torch.device("meta")) == [1.0]
    assert mask_scores(Judge(), image, ["a.png"]) == [1.0] and seen == ["meta", "cpu"]


@pytest.mark.parametrize(
    ("environment", "ends"),
    [({}, 0), ({"LOCAL_RANK": "0"}, 0), ({"LOCAL_RANK": "2"}, 1), ({"LOCAL_RANK": "2", "TORCHELASTIC_RUN_ID": "a"}, 0)],
)
def test_processes_that_lightning_started_end_with_the_first(monkeypatch, environment, ends):
    called = []
    for name in ("LOCAL_RANK", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ranks, "end_with_parent", lambda: called.append(1))
    ranks.end_with_first()
    assert len(called) == ends


def test_a_precision_that_the_cpu_would_replace_is_refused(cli, command, tmp_path):
    told = cli.refused("inference", *command(tmp_path, "--precision", "16-mixed"))
    assert "--precision 16-mixed: the CPU does not have it" in told


def test_offloaded_weights_come_for_encoding_and_decoding():
    pytest.importorskip("accelerate")
    called = []
    stage = BlockAutoencoder(3, 12, 2)
    stage._hf_hook = SimpleNamespace(pre_forward=lambda module: called.append(module))
    stage.decode(stage.encode(torch.zeros(1, 3, 4, 4)).latent_dist.mode())
    assert called == [stage, stage]

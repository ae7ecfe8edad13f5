"""Training, test and prediction from Python: options in, files and scores out, no command line."""

import json

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from common.errors import InputError
from segmentation import options
from segmentation.prediction import predict
from segmentation.testing import test as run_test
from segmentation.training import train


def test_a_segmentor_is_trained_tested_and_used(chain, capsys):
    config = Config.fromfile(chain.config)
    given = {"config": Config(config.to_dict()), "work_dir": chain.root / "work", "pretrained": "none"}
    trained = train(options.TrainOptions(**given, max_iters=2, seed=3, cfg_options={"optim_wrapper.optimizer.lr": 0.2}))
    assert trained.weights.name == "iter_2.pth" and trained.weights.is_file() and trained.best is None
    saved = Config.fromfile(trained.work_dir / "config.py")
    assert saved.optim_wrapper.optimizer.lr == 0.2 and saved.randomness.seed == 3
    assert config.optim_wrapper.optimizer.lr == 0.1  # what was given stays as it was

    tested = run_test(options.TestOptions(**given, load_from=trained.weights, confusion=True))
    assert json.loads(tested.file.read_text()) == tested.metrics
    assert [path.suffix for path in tested.confusion] == [".json", ".svg"]

    images, out = chain.root / "img_test", chain.root / "predicted"
    used = {"config": chain.config, "load_from": trained.weights, "images": images, "out": out, "trust_config": True}
    assert predict(options.PredictOptions(**used, num_workers=0, device="cpu")) == 3
    hit = total = 0
    for path in sorted((out / "masks").iterdir()):
        truth = np.array(Image.open(chain.root / "label_test" / path.name))
        hit += (np.array(Image.open(path)) == truth)[truth != 255].sum()
        total += (truth != 255).sum()
    assert tested.metrics["OA"] == pytest.approx(hit / total, abs=1e-3) and tested.metrics["images"] == 3
    assert capsys.readouterr().out == ""  # what there is to say, the command says


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"best": "OA"}, "best: this training validates on nothing; name a split with val_split"),
        ({"cfg_options": ["train_cfg"]}, "cfg_options train_cfg: settings are written key=value"),
        ({"cfg_options": {"optim_wrapper.optimizr.lr": 1}}, "cfg_options optim_wrapper.optimizr.lr: .*mean optimizer"),
        ({"pretrained": "none.pth"}, "pretrained none.pth: no such file"),
        ({"max_iters": 0}, "max_iters 0: write a whole number"),
        ({"launcher": "mpi"}, "launcher mpi: choose one of none, pytorch, slurm"),
    ],
)
def test_refusals_name_the_field(chain, given, message):
    with pytest.raises(InputError, match=message):
        train(options.TrainOptions(config=chain.config, trust_config=True, work_dir=chain.root / "work", **given))
    assert not (chain.root / "work").exists()

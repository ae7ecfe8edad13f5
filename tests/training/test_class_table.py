"""Which class table a new model has of which nobody says one."""

from tests.conftest import ROOT
from tests.training.test_training import options


def test_the_class_table_beside_the_data_is_the_models(cli, scenes, tmp_path):
    """Unless another one, or none, is named."""
    given = [text for text in options(scenes, tmp_path, "run", "--dry-run") if "model.params.classes" not in str(text)]
    told = f"classes by {scenes}/classes.json, which lies in --data-root"
    assert told in cli("train", *given)
    assert told not in cli("train", *given, "model.params.classes=LoveDA:ids")
    assert "palette: needs a class table" in cli.refused("train", *given, "model.params.classes=null")


def test_a_mask_branch_as_wide_as_the_table_beside_the_data(cli, scenes):
    """The table is known before the branch is counted; and what the first stage would not learn has to come."""
    files = ("--base", ROOT / "configs/train/mbrsc.yaml", "--config-model", ROOT / "configs/model/tisynth_mbrsc.yaml")
    lists = ("--data-root", scenes, "--train-txt-file", scenes / "train_set_items.json", "--gpus", "cpu", "--dry-run")
    lists += ("--val-txt-file", scenes / "train_set_items.json", "--precision", "32-true")
    assert "the first stage) would stay random; give start weights" in cli.refused("train", *files, *lists)
    assert "dry run" in cli("train", *files, *lists, "--allow-mismatch", "all")

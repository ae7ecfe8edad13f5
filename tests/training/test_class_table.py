"""Which class table a new model has of which nobody says one."""

from tests.training.test_training import options


def test_the_class_table_beside_the_data_is_the_models(cli, scenes, tmp_path):
    """Unless another one, or none, is named."""
    given = [text for text in options(scenes, tmp_path, "run", "--dry-run") if "model.params.classes" not in str(text)]
    told = f"classes by {scenes}/classes.json, which lies in --data-root"
    assert told in cli("train", *given)
    assert told not in cli("train", *given, "model.params.classes=LoveDA:ids")
    assert "palette: needs a class table" in cli.refused("train", *given, "model.params.classes=null")

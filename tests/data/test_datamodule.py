from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback, ModelCheckpoint

from cldm.data.datamodule import DataModuleFromConfig, EpochSampler, RankItems, TrainBatches
from cldm.data.pairs import PairedImages
from common.errors import InputError
from ldm.targets import instantiate_from_config

pytestmark = pytest.mark.filterwarnings("ignore")
ITEMS, BATCH = 7, 2  # 3 batches an epoch, one item dropped


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, make_data: Callable[..., Path]) -> Path:
    return make_data(tmp_path_factory.mktemp("many") / "data", ITEMS)


def module(root: Path, batch_size: int = BATCH, num_workers: int = 0, **options: Any) -> DataModuleFromConfig:
    params = {"data_root": str(root), "txt_file": "train.json", "empty_prompt_p": 0.1}
    train = {"target": "ldm.data.GID24_Control_ref.GID24Train", "params": params}
    return DataModuleFromConfig(batch_size, train=train, num_workers=num_workers, seed=3, **options)


class Recorder(LightningModule):
    """A linear map from reference to image that remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.map = torch.nn.Conv2d(3, 3, 1)
        self.seen: list[list[tuple[str, int]]] = []

    def training_step(self, batch: dict[str, Any]) -> torch.Tensor:
        self.seen.append(list(zip(batch["name"], batch["seed"].tolist(), strict=True)))
        return (self.map(batch["ssl"]) - batch["jpg"]).square().mean()

    def validation_step(self, batch: dict[str, Any]) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def fit(
    root: Path,
    folder: Path,
    callbacks: list[Callback] | None = None,
    resume: Path | None = None,
    data: DataModuleFromConfig | None = None,
    num_workers: int = 0,
    **limits: Any,
) -> tuple[Trainer, Recorder]:
    torch.manual_seed(0)
    model = Recorder()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "barebones": False}
    callbacks = callbacks or []
    trainer = Trainer(
        accelerator="cpu",
        callbacks=callbacks,
        default_root_dir=folder,
        use_distributed_sampler=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        **quiet,
        **limits,
    )
    trainer.fit(model, data or module(root, num_workers=num_workers), ckpt_path=resume, weights_only=True)
    return trainer, model


@pytest.fixture(scope="module")
def unbroken(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Recorder:
    """Ten steps: three epochs of three batches, and one batch more."""
    return fit(root, tmp_path_factory.mktemp("unbroken"), max_steps=10)[1]


def equal(a: Recorder, b: Recorder) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


class Every(ModelCheckpoint):
    def __init__(self, folder: Path, **when: Any) -> None:
        super().__init__(folder, filename="{step}", save_top_k=-1, **when)


def test_the_unbroken_run_sees_each_item_at_most_once_an_epoch(unbroken: Recorder) -> None:
    names = [[name for name, _ in batch] for batch in unbroken.seen]
    assert [len(batch) for batch in names] == [2] * 10
    epochs = [[name for batch in names[i : i + 3] for name in batch] for i in (0, 3, 6)]
    assert all(len(set(epoch)) == 6 for epoch in epochs) and epochs[0] != epochs[1] != epochs[2]
    assert len({seed for batch in unbroken.seen for _, seed in batch}) == 20  # an item has another seed in each epoch


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resumed_from_every_checkpoint_of_a_run(
    root: Path, tmp_path: Path, unbroken: Recorder, num_workers: int
) -> None:
    _, whole = fit(root, tmp_path, [Every(tmp_path, every_n_train_steps=1)], num_workers=num_workers, max_steps=10)
    assert whole.seen == unbroken.seen and equal(whole, unbroken)
    for step in (2, 3, 4):  # within an epoch, at its end, after the next one's first batch
        resumed = fit(root, tmp_path, resume=tmp_path / f"step={step}.ckpt", num_workers=num_workers, max_steps=10)[1]
        assert resumed.seen == unbroken.seen[step:], step
        assert equal(resumed, unbroken), step


@pytest.mark.parametrize(("stop", "num_workers"), [(2, 0), (3, 0), (4, 2)])
def test_resumed_after_max_steps(root: Path, tmp_path: Path, unbroken: Recorder, stop: int, num_workers: int) -> None:
    trainer, first = fit(root, tmp_path, num_workers=num_workers, max_steps=stop)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    trainer, second = fit(root, tmp_path, resume=tmp_path / "last.ckpt", num_workers=num_workers, max_steps=stop + 3)
    trainer.save_checkpoint(tmp_path / "last.ckpt")  # stopped twice
    third = fit(root, tmp_path, resume=tmp_path / "last.ckpt", num_workers=num_workers, max_steps=10)[1]
    assert first.seen + second.seen + third.seen == unbroken.seen
    assert equal(third, unbroken)


@pytest.mark.parametrize("when", [{"every_n_train_steps": 1}, {"every_n_epochs": 1}, {"save_on_train_epoch_end": True}])
def test_resumed_where_epochs_are_counted_and_validated(
    root: Path, tmp_path: Path, unbroken: Recorder, when: dict[str, Any]
) -> None:
    def data() -> DataModuleFromConfig:
        return module(root, validation=module(root).configs["train"])

    fit(root, tmp_path, [Every(tmp_path, **when)], data=data(), max_epochs=3, num_sanity_val_steps=1)
    checkpoints = sorted(tmp_path.glob("*.ckpt"))
    assert len(checkpoints) == (9 if "every_n_train_steps" in when else 3)
    for step in (2, 3) if "every_n_train_steps" in when else (3,):
        checkpoint = tmp_path / f"step={step}.ckpt"
        trainer, resumed = fit(root, tmp_path, resume=checkpoint, data=data(), max_epochs=3)
        assert resumed.seen == unbroken.seen[step:9] and trainer.global_step == 9, step


class Crash(Callback):
    """Fails in the middle of the fifth step and saves what there is, as on Ctrl-C."""

    def on_before_optimizer_step(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 4:
            raise RuntimeError("crash")

    def on_exception(self, trainer: Trainer, *_: Any) -> None:
        trainer.save_checkpoint(Path(trainer.default_root_dir) / "crash.ckpt")


def test_a_batch_that_was_read_but_not_learned_from_comes_again(root: Path, tmp_path: Path, unbroken: Recorder) -> None:
    with pytest.raises(RuntimeError, match="crash"):
        fit(root, tmp_path, [Crash()], num_workers=2, max_steps=10)
    resumed = fit(root, tmp_path, resume=tmp_path / "crash.ckpt", num_workers=2, max_steps=10)[1]
    assert resumed.seen == unbroken.seen[4:] and equal(resumed, unbroken)


def test_a_new_training_with_the_same_data_module_starts_at_the_start(
    root: Path, tmp_path: Path, unbroken: Recorder
) -> None:
    data = module(root)
    fit(root, tmp_path, data=data, max_steps=4)[0].save_checkpoint(tmp_path / "last.ckpt")
    assert fit(root, tmp_path, resume=tmp_path / "last.ckpt", data=data, max_steps=6)[1].seen == unbroken.seen[4:6]
    assert fit(root, tmp_path, data=data, max_steps=4)[1].seen == unbroken.seen[:4]


def test_another_batch_size_goes_on_with_the_next_item(root: Path, tmp_path: Path, unbroken: Recorder) -> None:
    fit(root, tmp_path, max_steps=2)[0].save_checkpoint(tmp_path / "last.ckpt")
    single = module(root, batch_size=1)
    resumed = fit(root, tmp_path, resume=tmp_path / "last.ckpt", data=single, max_steps=4)[1]
    assert resumed.seen == [[pair] for pair in unbroken.seen[2]]  # items 5 and 6 of the first epoch


def test_ranks_share_the_batches_of_one_device() -> None:
    whole = list(EpochSampler(12, seed=1))
    assert [index for _, index in whole] != list(range(12)) and sorted(index for _, index in whole) == list(range(12))
    for world_size in (2, 3, 4):
        shares = [list(EpochSampler(12, 1, rank, world_size)) for rank in range(world_size)]
        assert [pair for group in zip(*shares, strict=True) for pair in group] == whole
    uneven = [list(EpochSampler(7, 1, rank, 3)) for rank in range(3)]
    assert [len(share) for share in uneven] == [3, 3, 3]
    assert {index for share in uneven for _, index in share} == set(range(7))


def test_the_order_follows_from_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[tuple[int, int]]:
        sampler = EpochSampler(50, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 2) == order(1, 2) and {epoch for epoch, _ in order(1, 2)} == {2}
    orders = {tuple(index for _, index in order(seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


@pytest.mark.parametrize(("items", "batch", "lengths"), [(1, 4, [1]), (3, 4, [3]), (4, 4, [4]), (9, 4, [4, 4])])
def test_a_set_smaller_than_the_batch_is_one_batch(items: int, batch: int, lengths: list[int]) -> None:
    batches = TrainBatches(EpochSampler(items), batch, lambda: (0, 0))
    assert [len(found) for found in batches] == lengths and len(batches) == len(lengths)


def test_validation_keeps_the_lists_order_and_one_epoch(root: Path) -> None:
    data = module(root, validation=module(root).configs["train"])
    data.setup()
    loader = data.val_dataloader()
    assert len(loader) == 4
    runs = [
        [(name, seed) for batch in loader for name, seed in zip(batch["name"], batch["seed"].tolist(), strict=True)]
    ] * 2
    assert runs[0] == runs[1] and [name for name, _ in runs[0]] == [f"m{i}" for i in range(ITEMS)]
    item = data.datasets["validation"][0]
    assert runs[0][0] == (item["name"], item["seed"]) and isinstance(data.datasets["train"], PairedImages)
    assert data.datasets["train"].seed == 3  # the data module's, as params name none


def test_ranks_validate_each_item_once() -> None:
    items = [{"name": i} for i in range(7)]
    for world_size in (1, 2, 3, 8):
        shares = [RankItems(items, rank, world_size) for rank in range(world_size)]
        assert {len(share) for share in shares} == {-(-7 // world_size)}
        seen = [share[i] for i in range(len(shares[0])) for share in shares]
        assert [item["name"] for item in seen if item["weight"]] == list(range(7))
        assert {item["weight"] for item in seen} <= {0.0, 1.0}


def test_published_parameters_are_accepted_and_others_refused(root: Path) -> None:
    with pytest.warns(UserWarning, match="without effect here: wrap, test"):
        config = {
            "target": "main.DataModuleFromConfig",
            "params": {"wrap": True, "test": {"target": "x"}, "batch_size": 1},
        }
        assert isinstance(instantiate_from_config(config, train={"target": "x"}), DataModuleFromConfig)
    with pytest.raises(InputError, match="unknown parameters bach_size"):
        module(root, bach_size=1)
    with pytest.raises(InputError, match="batch_size is 0"):
        module(root, batch_size=0)
    with pytest.raises(InputError, match="neither train nor validation"):
        DataModuleFromConfig(1)
    with pytest.raises(InputError, match="no such class"):
        DataModuleFromConfig(1, train={"target": "cldm.data.Nothing"}).setup()


def test_images_of_different_sizes_cannot_share_a_batch(tmp_path: Path, make_data: Callable[..., Path]) -> None:
    make_data(tmp_path / "all/a", 1, side=64)
    make_data(tmp_path / "all/b", 1, side=128)
    lines = [(tmp_path / f"all/{part}/train.json").read_text().replace('": "', f'": "{part}/', 2) for part in "ab"]
    (tmp_path / "all/train.json").write_text("".join(lines))
    with pytest.raises(InputError, match=r"different sizes \(64 x 64, 128 x 128\) cannot share a batch; set size"):
        module(tmp_path / "all").setup()
    module(tmp_path / "all", batch_size=1).setup()
    items = {"data_root": str(tmp_path / "all"), "txt_file": "train.json", "crop": 64}
    crops = DataModuleFromConfig(2, train={"target": "cldm.data.pairs.PairedImages", "params": items}, num_workers=0)
    crops.setup()
    assert crops.datasets["train"][1]["jpg"].shape == (3, 64, 64)


def test_the_shuffled_order_is_uniform() -> None:
    first = np.array([next(iter(EpochSampler(5, seed)))[1] for seed in range(1000)])
    assert np.abs(np.bincount(first) / 1000 - 0.2).max() < 0.05

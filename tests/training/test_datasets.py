"""The known data sets against torchvision's own readers of the same files."""

import hashlib
import importlib.util
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from index.sources import open_source
from training.data import load_pictures

datasets = pytest.importorskip("torchvision.datasets")
DEBIAN = Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture(scope="module")
def layouts():
    """The writers of tiny files, from the tests of the index."""
    path = Path(__file__).parents[1] / "index" / "test_datasets.py"
    spec = importlib.util.spec_from_file_location("dataset_layouts", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def trusting(dataset, folder):
    """torchvision's class, told the checksums of the tiny files."""

    def known(files):
        return [[name, hashlib.md5((folder / name).read_bytes()).hexdigest()] for name, _ in files]

    values = {"train_list": known(dataset.train_list), "test_list": known(dataset.test_list)}
    if hasattr(dataset, "meta"):
        name = dataset.meta["filename"]
        values["meta"] = {**dataset.meta, "md5": hashlib.md5((folder / name).read_bytes()).hexdigest()}
    return type(dataset.__name__, (dataset,), values)


def ours(place):
    """What our source says: a label and the pixels of each picture, in order."""
    return [(item.label, np.asarray(Image.open(io.BytesIO(item.read()))).tolist()) for item in open_source(place)]


def theirs(dataset):
    """What torchvision says of the same files."""
    return [
        (None if number == -1 else dataset.classes[number], np.asarray(picture).tolist())
        for picture, number in dataset
    ]


def test_cifar_pictures_are_torchvisions(tmp_path, layouts):
    layouts.write_cifar10(tmp_path)
    layouts.write_cifar100(tmp_path)
    for name, dataset, folder in (
        ("cifar10", datasets.CIFAR10, "cifar-10-batches-py"),
        ("cifar100", datasets.CIFAR100, "cifar-100-python"),
    ):
        known = trusting(dataset, tmp_path / folder)
        assert ours(f"{name}:{tmp_path}") == theirs(known(tmp_path, train=True))
        assert ours(f"{name}:{tmp_path}:test") == theirs(known(tmp_path, train=False))


def test_stl10_pictures_are_torchvisions(tmp_path, layouts):
    layouts.write_stl10(tmp_path)
    known = trusting(datasets.STL10, tmp_path / "stl10_binary")
    for split in ("train", "test", "unlabeled", "train+unlabeled"):
        assert ours(f"stl10:{tmp_path}:{split}") == theirs(known(tmp_path, split=split))


def test_fashionmnist_pictures_are_torchvisions(tmp_path, layouts):
    layouts.write_fashionmnist(tmp_path / "FashionMNIST" / "raw", packed=False)
    assert ours(f"fashionmnist:{tmp_path}") == theirs(datasets.FashionMNIST(tmp_path, train=True))
    assert ours(f"fashionmnist:{tmp_path}:test") == theirs(datasets.FashionMNIST(tmp_path, train=False))


def test_training_takes_a_data_set_by_name(tmp_path, tiny_recipe, layouts):
    expected = layouts.write_fashionmnist(tmp_path, packed=True)
    pictures = load_pictures(f"fashionmnist:{tmp_path}", tiny_recipe)
    assert pictures.classes == ("Bag", "Coat", "Pullover", "Shirt", "T-shirt/top")
    assert pictures.labels.tolist() == [4, 2, 1, 3, 0]
    assert len(pictures) == len(expected["train"])
    unlabelled = load_pictures(Path(f"fashionmnist:{tmp_path}:test"), tiny_recipe, labels=False)
    assert len(unlabelled) == 3
    assert not unlabelled.labelled


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="dataset-fashion-mnist is not installed")
def test_debians_fashionmnist_is_whole():
    source = open_source(f"fashionmnist:{DEBIAN}")
    assert len(source) == 60_000
    labels = [picture.label for picture in source]
    assert {labels.count(name) for name in set(labels)} == {6_000}
    assert len(open_source(f"fashionmnist:{DEBIAN}:test")) == 10_000

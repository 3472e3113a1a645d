"""Known data sets: tiny files in their exact layouts, read as torchvision reads them (tests/training)."""

import gzip
import io
import pickle
import struct

import numpy as np
import pytest
from PIL import Image

from index.errors import SourceError
from index.sources import open_source


def pixels(picture):
    return np.asarray(Image.open(io.BytesIO(picture.read())))


def noise(*shape):
    return np.random.default_rng(shape).integers(0, 256, shape, dtype=np.uint8)


def write_cifar10(root, rows=4):
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    planes = noise(6, rows, 3, 32, 32)
    for number, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        batch = {"data": planes[number].reshape(rows, -1), "labels": list(range(rows)), "filenames": ["x"] * rows}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    names = {"label_names": ["plane", "car", "bird", "cat"], "num_vis": 3072}
    (folder / "batches.meta").write_bytes(pickle.dumps(names, protocol=2))
    return planes.transpose(0, 1, 3, 4, 2)


def write_cifar100(root, rows=3):
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    planes = noise(2, rows, 3, 32, 32)
    for number, name in enumerate(("train", "test")):
        batch = {"data": planes[number].reshape(rows, -1), "fine_labels": [2, 1, 0], "coarse_labels": [0] * rows}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": ["apple", "bee", "cup"]}, protocol=2))
    return planes.transpose(0, 1, 3, 4, 2)


def write_stl10(root):
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    pictures = {part: noise(count, 96, 96, 3) for part, count in (("train", 3), ("test", 2), ("unlabeled", 4))}
    for part, images in pictures.items():
        images.transpose(0, 3, 2, 1).tofile(folder / f"{part}_X.bin")
    np.array([1, 3, 2], np.uint8).tofile(folder / "train_y.bin")
    np.array([2, 2], np.uint8).tofile(folder / "test_y.bin")
    (folder / "class_names.txt").write_text("airplane\nbird\ncar\n")
    return pictures


def write_fashionmnist(folder, *, packed):
    folder.mkdir(parents=True, exist_ok=True)
    made = {}
    for prefix, count in (("train", 5), ("t10k", 3)):
        images, labels = noise(count, 28, 28), np.arange(count, dtype=np.uint8) * 2
        made[prefix] = images
        for name, array in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
            data = struct.pack(f">{1 + array.ndim}i", 0x0800 + array.ndim, *array.shape) + array.tobytes()
            (folder / (name + (".gz" if packed else ""))).write_bytes(gzip.compress(data) if packed else data)
    return made


def test_cifar10_gives_its_pictures_and_class_names(tmp_path):
    expected = write_cifar10(tmp_path)
    train = list(open_source(f"cifar10:{tmp_path}"))
    assert np.array_equal([pixels(item) for item in train], expected[:5].reshape(20, 32, 32, 3))
    assert [item.label for item in train] == ["plane", "car", "bird", "cat"] * 5
    assert (train[0].id, train[19].id) == ("train/000000", "train/000019")
    test = open_source(f"cifar10:{tmp_path}:test")
    assert np.array_equal([pixels(item) for item in test], expected[5])
    assert list(test.ids()) == [item.id for item in test] == [f"test/{row:06d}" for row in range(4)]
    assert {item.label for item in open_source(f"cifar10:{tmp_path}", "none")} == {None}
    assert len(open_source(f"cifar10:{tmp_path}/cifar-10-batches-py")) == 20
    assert pickle.loads(pickle.dumps(train[7])).read() == train[7].read()


def test_cifar100_gives_its_fine_classes(tmp_path):
    expected = write_cifar100(tmp_path)
    for number, split in enumerate(("train", "test")):
        items = list(open_source(f"cifar100:{tmp_path}:{split}"))
        assert np.array_equal([pixels(item) for item in items], expected[number])
        assert [item.label for item in items] == ["cup", "bee", "apple"]


def test_stl10_has_an_unlabelled_split(tmp_path):
    expected = write_stl10(tmp_path)
    assert [item.label for item in open_source(f"stl10:{tmp_path}")] == ["airplane", "car", "bird"]
    assert [item.label for item in open_source(f"stl10:{tmp_path}:test")] == ["bird", "bird"]
    for part, images in expected.items():
        assert np.array_equal([pixels(item) for item in open_source(f"stl10:{tmp_path}:{part}")], images)
    assert [item.label for item in open_source(f"stl10:{tmp_path}:unlabeled")] == [None] * 4
    both = list(open_source(f"stl10:{tmp_path}:train+unlabeled"))
    assert [item.id for item in both][2:5] == ["train/000002", "unlabeled/000000", "unlabeled/000001"]
    assert [item.label for item in both] == ["airplane", "car", "bird", None, None, None, None]


@pytest.mark.parametrize(
    ("layout", "packed"), [(".", True), (".", False), ("FashionMNIST/raw", False), ("FashionMNIST/raw", True)]
)
def test_fashionmnist_opens_as_torchvision_and_as_debian_lay_it_out(tmp_path, layout, packed):
    expected = write_fashionmnist(tmp_path / layout, packed=packed)
    train = list(open_source(f"fashionmnist:{tmp_path}"))
    assert np.array_equal([pixels(item) for item in train], expected["train"])
    assert [item.label for item in train] == ["T-shirt/top", "Pullover", "Coat", "Shirt", "Bag"]
    test = list(open_source(f"fashionmnist:{tmp_path}:test"))
    assert np.array_equal([pixels(item) for item in test], expected["t10k"])


def test_imagenet_is_its_class_folders(tmp_path, shape_png):
    for split in ("train", "val"):
        (tmp_path / split / "n01440764").mkdir(parents=True)
        (tmp_path / split / "n01440764" / f"{split}.JPEG").write_bytes(shape_png("circle", 1))
    items = list(open_source(f"imagenet:{tmp_path}:val"))
    assert [(item.id, item.label) for item in items] == [("n01440764/val.JPEG", "n01440764")]
    assert items[0].read() == shape_png("circle", 1)
    assert [item.label for item in open_source(f"imagenet:{tmp_path}", "none")] == [None]


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "stl10", "fashionmnist", "imagenet"])
def test_missing_files_are_one_sentence_that_names_them_and_their_origin(tmp_path, name):
    with pytest.raises(
        SourceError, match=f"expected the files of {name} in .*, got none at .*torchvision.datasets"
    ):
        open_source(f"{name}:{tmp_path}")
    with pytest.raises(SourceError, match=r"with one of train, .*, got 'valid'"):
        open_source(f"{name}:{tmp_path}:valid")
    with pytest.raises(SourceError, match="got no folder"):
        open_source(f"{name}:")


def test_a_colon_in_the_folder_is_part_of_it(tmp_path):
    write_cifar100(tmp_path / "a:b" / "c")
    assert len(open_source(f"cifar100:{tmp_path}/a:b/c")) == 3
    assert len(open_source(f"cifar100:{tmp_path}/a:b/c:test")) == 3


def test_damaged_files_are_one_sentence(tmp_path):
    write_cifar10(tmp_path)
    batch = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    batch.write_bytes(batch.read_bytes()[:-900])
    write_stl10(tmp_path)
    (tmp_path / "stl10_binary" / "train_X.bin").write_bytes(b"x" * 1000)
    write_fashionmnist(tmp_path, packed=True)
    images = tmp_path / "train-images-idx3-ubyte.gz"
    images.write_bytes(images.read_bytes()[:-50])
    for name in ("cifar10", "stl10", "fashionmnist"):
        with pytest.raises(SourceError, match=f"expected whole files of {name} in"):
            open_source(f"{name}:{tmp_path}")


def test_a_pickle_that_would_run_something_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return exec, ("open('ran', 'w')",)

    write_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(pickle.dumps({"data": Evil()}))
    with pytest.raises(SourceError, match=r"a pickle that calls builtins\.exec"):
        open_source(f"cifar10:{tmp_path}")

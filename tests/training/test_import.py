"""Other libraries' checkpoints: files with their exact layouts, read, recognised, and computed as they did."""

import contextlib
import io
import os
import pickle
import sys
import types
import warnings
import zipfile
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from index.encoder import Encoder
from index.errors import CheckpointError, RecipeError
from training import residual
from training.__main__ import main
from training.backbone import MEAN, STD
from training.foreign import layouts
from training.foreign.layouts import sort_weights
from training.foreign.network import architecture_of, head_of, network_of
from training.foreign.reading import Placeholder, _Unpickler, read
from training.importing import Choices, Foreign, import_checkpoint
from training.recipes import Recipe

CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
CIFAR_SOLO = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
IMAGENET = (MEAN, STD)


def trained(module):
    """Give every weight and statistic a value of its own, as training would."""
    generator = torch.Generator().manual_seed(len(module.state_dict()))
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("num_batches_tracked"):
                tensor.fill_(7)
            elif tensor.ndim == 1:
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.5 + 0.5)
            else:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * (2 / tensor[0].numel()) ** 0.5)
    return module.eval()


def resnet(stem="imagenet"):
    """A torchvision ResNet-18 of a quarter of the width: 128 features, and torchvision's own forward."""
    return trained(residual.build("resnet18", width=0.25, stem=stem)[0])


def linear(inputs=128):
    return trained(nn.Sequential(nn.Linear(inputs, 128)))


def mlp():
    return trained(nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 128)))


def normed_mlp():
    return trained(nn.Sequential(nn.Linear(128, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 128)))


def state(module, prefix="", rename=lambda key: key):
    return {prefix + rename(key): tensor for key, tensor in module.state_dict().items()}


def with_shortcuts(key):
    return key.replace("downsample", "shortcut")


def layer(head, prefix):
    """The keys of a head of one layer, which other libraries do not number."""
    return state(head[0], prefix)


def numbered(body, numbers):
    parts = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")
    return {
        f"{number}.{key}": tensor
        for number, part in zip(numbers, parts, strict=True)
        for key, tensor in getattr(body, part).state_dict().items()
    }


def prefixed(prefix, table):
    return {prefix + key: tensor for key, tensor in table.items()}


def without_first_relu(body):
    return nn.Sequential(
        body.conv1,
        body.bn1,
        body.layer1,
        body.layer2,
        body.layer3,
        body.layer4,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def moco_v1():
    body, head = resnet(), linear()
    both = {**state(body), **layer(head, "fc.")}
    weights = {**prefixed("module.encoder_q.", both), **prefixed("module.encoder_k.", both)}
    weights |= {"module.queue": torch.randn(128, 32), "module.queue_ptr": torch.zeros(1, dtype=torch.long)}
    return (
        {"epoch": 200, "arch": "resnet18", "state_dict": weights, "optimizer": {"state": {}}},
        body,
        head,
        IMAGENET,
    )


def moco_v2():
    body, head = resnet(), mlp()
    weights = {**state(body, "module.encoder_q."), **state(head, "module.encoder_q.fc.")}
    return {"epoch": 800, "arch": "resnet18", "state_dict": weights}, body, head, IMAGENET


def moco_cifar10():
    body, head = resnet("full"), linear()
    query = {**numbered(body, (0, 1, 3, 4, 5, 6)), **layer(head, "9.")}
    weights = {
        **prefixed("encoder_q.net.", query),
        **prefixed("encoder_k.net.", query),
        "queue": torch.randn(128, 8),
    }
    return {"epoch": 200, "state_dict": weights, "optimizer": {}}, body, head, CIFAR


def lemniscate():
    body, head = resnet(), linear()
    weights = {**state(body, "module."), **layer(head, "module.fc.")}
    bank = foreign_class("lib.NCEAverage", "NCEAverage", nn.Module)()
    bank.register_buffer("memory", torch.arange(12.0).view(6, 2))
    return {"epoch": 1, "arch": "resnet18", "state_dict": weights, "lemniscate": bank}, body, head, IMAGENET


def lemniscate_cifar10():
    body, head = resnet("full"), linear()
    weights = {**state(body, "module.", with_shortcuts), **layer(head, "module.linear.")}
    bank = foreign_class("lib.LinearAverage", "LinearAverage", nn.Module)()
    return {"net": weights, "lemniscate": bank, "acc": 0.8, "epoch": 199}, body, head, CIFAR


def mmselfsup_npid():
    body, head = resnet(), linear()
    weights = {**state(body, "backbone."), **layer(head, "neck.fc.")}
    weights |= {"memory_bank.feature_bank": torch.randn(9, 128), "memory_bank.multinomial.prob": torch.ones(9)}
    hub = foreign_class("mmengine.logging", "HistoryBuffer", object)()
    return {"meta": {}, "state_dict": weights, "message_hub": {"loss": hub}}, body, head, IMAGENET


def mmselfsup_moco_0x():
    body, head = resnet(), mlp()
    weights = {**state(body, "backbone."), **state(head, "neck.mlp.")}
    weights |= {**state(body, "encoder_q.0."), **state(head, "encoder_q.1.mlp."), **state(body, "encoder_k.0.")}
    return {"meta": {}, "state_dict": weights}, body, head, IMAGENET


def mmselfsup_relative_location():
    body = resnet()
    weights = {**state(body, "backbone."), "neck.fc.weight": torch.randn(64, 256), "neck.fc.bias": torch.zeros(64)}
    return {"state_dict": {**weights, "head.fc_cls.weight": torch.randn(8, 64)}}, body, None, IMAGENET


def openselfsup_published():
    body = resnet()
    return {"state_dict": OrderedDict(state(body)), "author": "somebody"}, body, None, IMAGENET


def vissl_npid():
    body, head = resnet(), linear()
    model = {"trunk": state(body, "_feature_blocks."), "heads": layer(head, "0.clf.0.")}
    config = foreign_class("vissl.utils.hydra_config", "AttrDict", dict)(SEED=1)
    return {"classy_state_dict": {"base_model": {"model": model}}, "config": config}, body, head, IMAGENET


def vissl_moco():
    body, head = resnet(), mlp()
    heads = {**layer(head, "0.clf.0."), **state(head[2], "1.clf.0.")}
    model = {"trunk": state(body, "_feature_blocks."), "heads": heads}
    return (
        {"classy_state_dict": {"base_model": {"model": model}}, "loss": {"queue": torch.zeros(3)}},
        body,
        head,
        IMAGENET,
    )


def vissl_flat():
    body = resnet()
    return {"model_state_dict": state(body, "_feature_blocks.")}, body, None, IMAGENET


def lightly_named():
    body, head = resnet(), mlp()
    weights = {**state(body, "backbone."), **state(head, "projection_head.layers.")}
    weights |= {**state(body, "backbone_momentum."), **state(head, "projection_head_momentum.layers.")}
    hyper = foreign_class("lightning.fabric", "AttributeDict", dict)(lr=0.06)
    return {"state_dict": weights, "hyper_parameters": hyper, "optimizer_states": []}, body, head, IMAGENET


def lightly_sequence():
    body, head = resnet(), normed_mlp()
    weights = prefixed("backbone.", numbered(body, (0, 1, 4, 5, 6, 7)))
    return {"state_dict": {**weights, **state(head, "projection_head.layers.")}}, body, head, IMAGENET


def lightly_cifar10():
    body, head = resnet("full"), mlp()
    weights = prefixed("backbone.", numbered(body, range(6)))
    weights = {with_shortcuts(key): tensor for key, tensor in weights.items()}
    for key in list(weights):  # statistics of two parts of the batch, one after the other
        if key.endswith(("running_mean", "running_var")):
            weights[key] = torch.cat([weights[key] - 0.1, weights[key] + 0.1])
    return (
        {"state_dict": {**weights, **state(head, "projection_head.layers.")}},
        without_first_relu(body),
        head,
        IMAGENET,
    )


def solo_learn():
    body, head = resnet("full"), mlp()
    weights = {**state(body, "backbone."), **state(head, "projector."), **state(body, "momentum_backbone.")}
    weights |= {"queue": torch.randn(2, 128, 4), "classifier.weight": torch.randn(10, 128)}
    return {"state_dict": weights, "hyper_parameters": {}}, body, head, CIFAR_SOLO


def pycontrast():
    body, head = resnet(), mlp()
    weights = {**state(body, "module.encoder."), **state(head, "module.head.")}
    options = foreign_class("argparse_of_old", "Namespace", object)()
    return {"opt": options, "model": weights, "model_ema": weights, "epoch": 200}, body, head, IMAGENET


def torchvision_plain():
    body = resnet()
    return {**state(body), "fc.weight": torch.randn(1000, 128), "fc.bias": torch.zeros(1000)}, body, None, IMAGENET


def moco_linear_classifier():
    body = resnet()
    weights = {
        **state(body, "module."),
        "module.fc.weight": torch.randn(1000, 128),
        "module.fc.bias": torch.zeros(1000),
    }
    return {"epoch": 100, "arch": "resnet18", "state_dict": weights, "best_acc1": 67.5}, body, None, IMAGENET


MAKERS = {
    moco_v1: "moco",
    moco_v2: "moco",
    moco_cifar10: "moco-cifar10",
    lemniscate: "lemniscate",
    lemniscate_cifar10: "lemniscate-cifar10",
    mmselfsup_npid: "mmselfsup",
    mmselfsup_moco_0x: "mmselfsup",
    mmselfsup_relative_location: "mmselfsup",
    openselfsup_published: "torchvision",
    vissl_npid: "vissl",
    vissl_moco: "vissl",
    vissl_flat: "vissl",
    lightly_named: "lightly",
    lightly_sequence: "lightly",
    lightly_cifar10: "lightly",
    solo_learn: "solo-learn",
    pycontrast: "pycontrast",
    torchvision_plain: "torchvision",
    moco_linear_classifier: "torchvision",
}


def foreign_class(module, name, base):
    """Return a class of a module that whoever reads the file will not have."""
    made = type(name, (base,), {"__module__": module})
    parts = module.split(".")
    for depth in range(1, len(parts) + 1):
        sys.modules.setdefault(".".join(parts[:depth]), types.ModuleType(parts[depth - 1]))
    setattr(sys.modules[module], name, made)
    return made


@pytest.fixture(autouse=True)
def _foreign_modules_are_gone():
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in {"lib", "mmengine", "vissl", "lightning", "argparse_of_old"}:
            del sys.modules[name]


def save(document, path, *, legacy=False):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the legacy format stores the source of a module's class, which has none
        torch.save(document, path, _use_new_zipfile_serialization=not legacy)
    for name in list(sys.modules):
        if name.partition(".")[0] in {"lib", "mmengine", "vissl", "lightning", "argparse_of_old"}:
            del sys.modules[name]
    return path


def network_from(path):
    weights = sort_weights(read(path))
    found = architecture_of(weights.backbone)
    recipe = Recipe(
        name="x", about="", options=Foreign(), backbone=found.backbone, width=found.width, stem=found.stem
    )
    return weights, *network_of(weights, recipe)


@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.__name__)
def test_each_layout_computes_what_the_network_computed_that_its_weights_came_from(maker, tmp_path):
    document, body, head, (mean, deviation) = maker()
    weights, network, _ = network_from(save(document, tmp_path / "foreign.pth"))
    assert weights.layout.name == MAKERS[maker]
    pixels = torch.rand(3, 3, 40, 40)
    normalised = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(deviation).view(3, 1, 1)
    with torch.inference_mode():
        features = body(normalised)
        assert torch.allclose(network.features(pixels), features, rtol=1e-4, atol=1e-4)
        assert (network.projection is None) == (head is None)
        if head is not None:
            expected = F.normalize(head(features), dim=1)
            assert torch.allclose(network(pixels), expected, atol=1e-4)
            assert not torch.allclose(expected[0], expected[1], atol=1e-2)  # the comparison can fail


def test_every_layout_of_the_table_has_a_file_here():
    assert set(MAKERS.values()) == set(layouts.names())


def test_what_an_encoder_has_no_use_for_is_counted(tmp_path):
    document, *_ = moco_v1()
    weights, _, said = network_from(save(document, tmp_path / "m.pth"))
    tensors = len(resnet().state_dict())
    assert len(weights.backbone) == tensors
    assert weights.ignored == {"encoder_k": tensors + 2, "queue": 1, "queue_ptr": 1}
    assert said == "linear head, 128 → 128"
    document, *_ = mmselfsup_relative_location()
    weights, _, said = network_from(save(document, tmp_path / "r.pth"))
    assert weights.ignored == {"head": 1}
    assert said == "linear head, 256 → 64, which is no projection of 128 features to 128"


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_memory_bank_of_a_foreign_class_is_data_without_behaviour(tmp_path, legacy):
    document, *_ = lemniscate()
    found = read(save(document, tmp_path / "l.pth.tar", legacy=legacy))["lemniscate"]
    assert isinstance(found, Placeholder)
    assert type(found).__name__ == "NCEAverage"
    assert torch.equal(found.state["_buffers"]["memory"], torch.arange(12.0).view(6, 2))


class Calls:
    """Pickles as a call of a function with arguments."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_no_code_in_a_file_is_run(tmp_path, legacy):
    mark = tmp_path / "mark"
    document, *_ = moco_v2()
    bad = {
        "system": Calls(os.system, f"touch {mark}"),
        "eval": Calls(eval, f"open({str(mark)!r}, 'w')"),
        "exec": Calls(exec, f"open({str(mark)!r}, 'w')"),
        "popen": Calls(os.popen, f"touch {mark}"),
        "open": Calls(open, str(mark), "w"),
    }
    path = save({"bad": bad, **document}, tmp_path / "bad.pth", legacy=legacy)
    weights, network, _ = network_from(path)
    assert not mark.exists()
    assert weights.layout.name == "moco"
    assert network.projection is not None
    pickle.loads(pickle.dumps(bad["system"]))  # where such a pickle is trusted, it does run
    assert mark.exists()


def test_a_file_cannot_change_what_builds_tensors():
    """A pickle may also set attributes of what it names: here the function's defaults."""
    function = torch._utils._rebuild_tensor_v2
    before = function.__defaults__
    sets = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x0c\x00\x00\x00__defaults__K\x01\x85s\x86b."
    pickle.loads(sets)
    assert function.__defaults__ == (1,)  # where such a pickle is trusted, it does
    function.__defaults__ = before
    with contextlib.suppress(TypeError):
        _Unpickler(io.BytesIO(sets)).load()
    assert function.__defaults__ == before


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "cannot be read"),
        (b"not a pickle", "cannot be read"),
        (pickle.dumps({"model": 1}), "cannot be read"),
    ],
    ids=["empty", "text", "pickle"],
)
def test_a_file_that_torch_did_not_write_is_told(tmp_path, content, expected):
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=expected):
        read(path)


def test_a_cut_off_file_a_missing_one_and_a_program_are_told(tmp_path):
    whole = save(moco_v2()[0], tmp_path / "whole.pth").read_bytes()
    cut = tmp_path / "cut.pth"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="check that the download is complete"):
        read(cut)
    with pytest.raises(CheckpointError, match="no such file"):
        read(tmp_path / "none.pth")
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as file:
        file.writestr("script/constants.pkl", b"")
    with pytest.raises(CheckpointError, match="a TorchScript program"):
        read(tmp_path / "script.pt")


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"state_dict": {"blocks.0.attn.qkv.weight": torch.zeros(3, 3)}}, r"got blocks.0.attn.qkv.weight, …"),
        ({"network": {}, "epoch": 1}, "got epoch, network, …"),
        (torch.zeros(3), "got Tensor, …"),
    ],
    ids=["transformer", "nothing", "tensor"],
)
def test_a_file_of_no_known_layout_is_told_with_what_it_holds(tmp_path, document, expected):
    with pytest.raises(CheckpointError, match=expected):
        sort_weights(read(save(document, tmp_path / "x.pth")))


def test_weights_that_do_not_fit_are_told_in_a_sentence(tmp_path):
    body = state(resnet())
    wrong = {**body, "layer3.0.conv2.weight": torch.zeros(64, 64, 1, 1)}
    with pytest.raises(CheckpointError, match=r"expected layer3.0.conv2.weight of shape \(64, 64, 3, 3\), got"):
        network_from(save(wrong, tmp_path / "w.pth"))
    missing = {key: tensor for key, tensor in body.items() if key != "layer4.1.bn2.running_var"}
    with pytest.raises(CheckpointError, match=r"got none of layer4.1.bn2.running_var \(1 missing, 0 too many\)"):
        network_from(save(missing, tmp_path / "m.pth"))
    more = {**body, "layer4.1.se.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"got layer4.1.se.weight as well \(0 missing, 1 too many\)"):
        network_from(save(more, tmp_path / "t.pth"))
    grey = {**body, "conv1.weight": torch.zeros(16, 1, 7, 7)}
    with pytest.raises(CheckpointError, match="only networks for RGB pictures"):
        network_from(save(grey, tmp_path / "g.pth"))
    three = {key: tensor for key, tensor in body.items() if not key.startswith("layer2.1")}
    with pytest.raises(CheckpointError, match="got 2-1-2-2 basic blocks"):
        network_from(save(three, tmp_path / "b.pth"))


def test_files_from_before_batches_were_counted_load(tmp_path):
    body = resnet()
    old = {key: tensor for key, tensor in state(body).items() if not key.endswith("num_batches_tracked")}
    _, network, _ = network_from(save(old, tmp_path / "old.pth", legacy=True))
    pixels = torch.rand(2, 3, 40, 40)
    with torch.inference_mode():
        normalised = torchvision.transforms.functional.normalize(pixels, MEAN, STD)
        assert torch.allclose(network.features(pixels), body(normalised), rtol=1e-4, atol=1e-4)


def test_python_2_s_byte_strings_do_not_hinder(tmp_path):
    path = save({"note": "old text", **moco_v2()[0]}, tmp_path / "old.pth", legacy=True)
    before, after = b"X\x08\x00\x00\x00old text", b"T\x08\x00\x00\x00\xff\xfe text\n"  # BINUNICODE, BINSTRING
    data = path.read_bytes()
    assert data.count(before) == 1
    path.write_bytes(data.replace(before, after))
    assert network_from(path)[0].layout.name == "moco"


@pytest.mark.parametrize("name", residual.NAMES)
def test_the_architecture_is_read_from_the_shapes(name):
    with torch.device("meta"):
        weights = torchvision.models.get_model(name).state_dict()
    found = architecture_of({key: tensor for key, tensor in weights.items() if not key.startswith("fc.")})
    assert (found.backbone, found.width, found.stem) == (name, 1.0, "imagenet")


def test_a_head_without_a_size_of_ours_is_left_out():
    head = {"0.weight": torch.zeros(256, 128), "0.bias": torch.zeros(256)}
    assert head_of(head, 128, 128) == (
        None,
        "linear head, 128 → 256, which is no projection of 128 features to 128",
    )
    assert head_of({"0.weight": torch.zeros(128, 128, 1, 1)}, 128, 128) == (None, "a head of an unknown kind")
    assert head_of({}, 128, 128) == (None, "no head in the file")


@pytest.fixture(scope="module")
def imported(shapes_folder, tmp_path_factory):
    """A CIFAR checkpoint imported by the command line; folder and what it printed."""
    root = tmp_path_factory.mktemp("import")
    save(moco_cifar10()[0], root / "moco_v1.pth.tar")
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = main(
            ["import", str(root / "moco_v1.pth.tar"), "--data", str(shapes_folder), "--out", str(root / "e.onnx")]
        )
    assert code == 0
    return root, out.getvalue()


def test_an_imported_encoder_serves_and_says_where_it_came_from(imported):
    root, _ = imported
    encoder = Encoder.load(root / "e.onnx")  # recomputes the canary
    spec = encoder.spec
    assert (spec.name, spec.method, spec.backbone, spec.dim) == ("moco_v1", "import:moco-cifar10", "resnet18", 128)
    assert (spec.preprocess.resize, spec.preprocess.crop, spec.preprocess.fit) == (32, 32, "crop")
    assert spec.trained_on["file"] == "moco_v1.pth.tar"
    assert len(spec.trained_on["sha256"]) == 64
    assert spec.knn.items == 32


def test_the_report_says_what_was_used_and_what_was_ignored(imported):
    root, text = imported
    tensors = len(resnet().state_dict())
    assert f"{root / 'moco_v1.pth.tar'}: layout moco-cifar10, resnet18" in text
    assert f"used {tensors} tensors of the backbone; linear head, 128 → 128" in text
    assert f"ignored: encoder_k ({tensors + 2}), queue (1)" in text
    assert "projection 0." in text
    assert "pca 0." in text


def test_sizes_that_do_not_go_together_are_told(shapes_folder, tmp_path):
    save(moco_cifar10()[0], tmp_path / "m.pth")
    with pytest.raises(RecipeError, match="--resize of at least --image-size 32, got 16"):
        import_checkpoint(tmp_path / "m.pth", tmp_path / "e.onnx", data=shapes_folder, choices=Choices(resize=16))


def test_the_command_line_tells_a_wrong_file_in_a_line(shapes_folder, tmp_path, capsys):
    save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "x.pth")
    code = main(
        ["import", str(tmp_path / "x.pth"), "--data", str(shapes_folder), "--out", str(tmp_path / "e.onnx")]
    )
    assert code == 2
    assert capsys.readouterr().err.startswith("error: expected the weights of a residual network in one of")
    assert not (tmp_path / "e.onnx").exists()

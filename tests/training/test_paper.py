"""The paper's stages: what is frozen stays as it was, what is trained learns, and a run that stopped goes on."""

import json

import keras
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from surveycat.errors import OptionError
from surveycat.mrcnn.backbone import RESNET_BLOCKS
from surveycat.mrcnn.presets import MrcnnConfig, TrainingSettings
from surveycat.mrcnn.weights import load_arrays, make_network, variables_by_name
from training import dataset, paper
from training.loader import read_shard

STAGES = tuple(paper.Stage(layers, 1, 1e-3) for layers in ("heads", "5+", "3+", "all"))
OPTIONS = {"stages": STAGES, "epoch_steps": 2, "save_every": 1, "validate": False}
FIRST_TRAINED = {"heads": "9", "5+": "5", "3+": "3", "all": "0"}  # stage of the trunk


def thin_network(seed=1):
    """The paper's architecture with few channels and a single block in each stage."""
    training = TrainingSettings(rois_per_image=8, proposals=32, anchors_per_image=64, images_per_step=1)
    config = MrcnnConfig(
        name="thin",
        backbone="shallow",
        mean_pixel=(10.71, 15.81, 19.04),
        stem_channels=4,
        pyramid_channels=8,
        rpn_channels=8,
        proposals_before_nms=200,
        box_units=16,
        mask_channels=8,
        training=training,
    )
    keras.utils.set_random_seed(seed)
    return make_network(config)


@pytest.fixture(scope="module", autouse=True)
def shallow():
    """A trunk with one block in each stage can be named; steps run uncompiled, which is quicker for two of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RESNET_BLOCKS, "shallow", (1, 1, 1, 1))
        plain = paper.Trainer.compile
        patch.setattr(paper.Trainer, "compile", lambda self, **given: plain(self, **given, run_eagerly=True))
        yield


@pytest.fixture(scope="module")
def scenes(shared_data, tmp_path_factory):
    """Real cutouts as COCO annotations, and those as scenes."""
    folder = tmp_path_factory.mktemp("cutouts")
    pictures = shared_data / "cutouts" / "gz2"
    frame = pd.read_csv(pictures / "labels.csv", low_memory=False)
    frame = frame[(frame["split"] == "train") & (frame["confident"] == 1)].head(6)
    found = []
    for row in frame.itertuples():
        mask = dataset.otsu_mask(dataset.read_picture(pictures / row.file))
        if mask is not None:
            found.append({"file": row.file, "shape": mask.shape, "masks": [mask], "labels": [row.label]})
    dataset.write_coco(found, folder / "train.json")
    paper.shards_of(folder / "train.json", pictures, folder / "scenes", "train")
    return folder / "scenes"


def arrays(network):
    """Copies of all arrays by name."""
    return {name: keras.ops.convert_to_numpy(variable).copy() for name, variable in variables_by_name(network).items()}


def trunk_stage(name):
    """Stage of the trunk that an array is of, as text; 9 for what comes after the trunk."""
    layer = name.split("/")[1].removeprefix("bn_").removeprefix("bn").removeprefix("res")
    return "1" if layer.startswith("conv1") else layer[0] if layer[0].isdigit() else "9"


@pytest.fixture(scope="module")
def whole(scenes, tmp_path_factory):
    """A run of two steps of each stage that nothing disturbed: what was at its start, and its folder."""
    network, folder = thin_network(), tmp_path_factory.mktemp("whole")
    before = arrays(network)
    paper.train(network, scenes, folder, **OPTIONS)
    return before, folder


def test_stages_train_their_layers_and_freeze_the_others(whole):
    """Frozen arrays stay equal to the bit, statistics always; of what is trained, trunk, pyramid and RPN move."""
    before, folder = whole
    network = thin_network()
    for number, stage in enumerate(STAGES, 1):
        load_arrays(network, folder / f"{number}-{stage.layers}" / "checkpoint.h5")
        after = arrays(network)
        moved = {name for name in after if not np.array_equal(after[name], before[name])}
        trained = {name for name in after if trunk_stage(name) >= FIRST_TRAINED[stage.layers] and "moving" not in name}
        assert moved <= trained
        # the heads learn where a proposal lies on an object, which two steps do not promise
        sure = {name.split("/")[1] for name in trained if "mrcnn" not in name}
        assert sure <= {name.split("/")[1] for name in moved}
        before = after


def test_loss_of_a_fixed_batch_falls(scenes):
    """A few steps on one batch lower the sum of the losses."""
    network = thin_network()
    trainer = paper.make_trainer(network, paper.Stage("all", 1, 0.01))
    batch = next(paper.batches(scenes, "train", network, 2, 0, 0))
    totals = [sum(trainer.train_on_batch(batch, return_dict=True).values()) for _ in range(5)]
    assert totals[-1] < 0.9 * totals[0]


def test_resumed_run_gives_the_same_weights(whole, scenes, tmp_path):
    """Stopped in the middle of the second stage and started anew: equal to the run that was not disturbed."""

    class Stop(Exception):
        pass

    def stopping(network, split, *given):
        source = plain(network, split, *given)
        for number, batch in enumerate(source):
            if stages_begun == 2 and number == 1:
                raise Stop
            yield batch

    plain, make, stages_begun = paper.batches, paper.make_trainer, 0
    options = OPTIONS | {"stages": STAGES[:2]}

    def counting(*given):
        nonlocal stages_begun
        stages_begun += 1
        return make(*given)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(paper, "batches", stopping)
        patch.setattr(paper, "make_trainer", counting)
        paper.train(thin_network(), scenes, tmp_path, **options)
    log = [json.loads(line) for line in (tmp_path / "2-5+" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [1] and "minutes_left" in log[0]
    network = thin_network(seed=5)
    paper.train(network, scenes, tmp_path, **options)
    for place in ("1-heads", "2-5+"):
        ends = []
        for run in (whole[1], tmp_path):
            load_arrays(network, run / place / "checkpoint.h5")
            ends.append(arrays(network))
        for name, value in ends[0].items():
            np.testing.assert_array_equal(ends[1][name], value, err_msg=f"{place} {name}")


def test_classes_of_objects(scenes):
    """Numbered as the configuration has them; one class for all where there is one, none where nobody knows it."""
    scene = {"box": np.zeros((3, 4)), "p_spiral": np.array([1.0, 0.0, 0.5]), "class_weight": np.array([1.0, 1.0, 0.0])}
    assert paper.class_numbers(scene, ("spiral", "elliptical")).tolist() == [1, 2, 0]
    assert paper.class_numbers(scene, ("elliptical", "spiral")).tolist() == [2, 1, 0]
    assert paper.class_numbers(scene, ("galaxy",)).tolist() == [1, 1, 1]


def test_stages_on_the_command_line():
    """Read as written, refused with the wrong one named."""
    assert paper.parse_stages("heads:20:1e-3,5+:2:0.5") == (paper.Stage("heads", 20, 1e-3), paper.Stage("5+", 2, 0.5))
    for wrong in ("heads:20", "6+:1:1e-3", "all:0:1e-3", "all:x:1"):
        with pytest.raises(OptionError, match=wrong.replace("+", r"\+")):
            paper.parse_stages(f"heads:1:1e-3,{wrong}")


def test_command_says_what_it_needs(tmp_path, capsys):
    """One line for each mistake, exit code 1."""
    for arguments, word in (
        (["--preset", "resnet"], "resnet"),
        ([], "--data"),
        (["--scenes", str(tmp_path)], "scenes_train"),
        (["--data", str(tmp_path / "none.json")], "none.json"),
    ):
        assert paper.main([*arguments, "--out", str(tmp_path / "run")]) == 1
        message = capsys.readouterr().err
        assert word in message and message.count("\n") == 1


def test_scenes_of_annotations_are_whole_and_theirs(tmp_path):
    """What an interruption left is made again, and other annotations are not taken for those that are there."""
    pictures, out, mask = tmp_path / "train", tmp_path / "scenes", np.zeros((80, 80), bool)
    pictures.mkdir()
    mask[30:50, 30:50] = True
    for number in range(2):
        Image.fromarray(np.full((80, 80, 3), 9, np.uint8)).save(pictures / f"{number}.png")
    one = [{"file": f"{n}.png", "shape": mask.shape, "masks": [mask], "labels": ["spiral"]} for n in range(2)]
    dataset.write_coco(one, tmp_path / "train.json")
    out.mkdir()
    (out / "scenes_train_annotated_0000.npz").write_bytes(b"left")
    paper.shards_of(tmp_path / "train.json", None, out, "train")
    assert len(read_shard(out / "scenes_train_annotated_0000.npz")) == 2
    dataset.write_coco(one[:1], tmp_path / "train.json")
    with pytest.raises(OptionError, match="other annotations"):
        paper.shards_of(tmp_path / "train.json", None, out, "train")


def test_validation_reports_losses(scenes):
    """Validation gives the mean of each loss over the same batches, without training."""
    network = thin_network()
    trainer = paper.make_trainer(network, STAGES[0])
    before = arrays(network)
    judge = paper.validation(trainer, paper.batches(scenes, "train", network, 2, 0, 0), steps=2)
    first, second = judge(), judge()
    assert first == second and set(first) == {f"val_{name}" for name in paper.TERMS}
    assert all(np.array_equal(value, before[name]) for name, value in arrays(network).items())

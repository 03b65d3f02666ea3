"""The rows of all parts by HEALPix cell: the same as if all were put in order at once, region by region."""

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet
import pytest

from surveycat import partitions
from surveycat.dataset import rows_table
from surveycat.partitions import write_partitions
from surveycat.primary import primary, same_galaxy
from surveycat.targets import Targets


def survey(n, ra, dec, seed=0):
    """Give ids and rows of n cutouts in a strip of overlapping ones, each with three galaxies, one on the first."""
    rng = np.random.default_rng(seed)
    places = np.stack([ra + np.arange(n) * 40 / 3600, dec + np.arange(n) * 40 / 3600], axis=1)
    measured = []
    for east, north in places:
        # Galaxies on a lattice, so that neighbouring cutouts show the same ones.
        where = np.round((np.array([east, north]) + rng.uniform(-50, 50, (3, 2)) / 3600) * 90) / 90
        where += rng.normal(0, 0.2, (3, 2)) / 3600
        measured.append({
            "id": np.arange(1, 4), "ra": where[:, 0] % 360, "dec": where[:, 1], "host": np.array([0, 1, 0]),
            "score": rng.uniform(0.5, 1, 3), "flags": rng.integers(0, 2, 3), "area": rng.uniform(60, 900, 3),
            "is_target": np.array([True, False, False]), "target_separation": rng.uniform(0, 50, 3),
        })  # fmt: skip
    return np.arange(1000, 1000 + n), measured


def written(folder, ids, measured, groups):
    """Write the dataset of parts that hold some cutouts each; gives its rows and partitions."""
    paths = []
    for number, group in enumerate(groups):
        paths.append(folder.with_name(f"{folder.name}-{number}.parquet"))
        pyarrow.parquet.write_table(rows_table([measured[i] for i in group], ids[list(group)]), paths[-1])
    kept = {"votes": ids * 3}
    targets = Targets(ids, np.zeros(len(ids)), np.zeros(len(ids)), np.arange(len(ids)), kept)
    counts, files = write_partitions(paths, folder, targets, ["votes"], 4)
    table = pa.concat_tables([pyarrow.parquet.ParquetFile(folder.parent / each["path"]).read() for each in files])
    assert counts["detections"] == len(table) == sum(each["rows"] for each in files)
    return table, files


@pytest.mark.parametrize(("ra", "dec"), [(359.7, 0.0), (44.7, -0.3), (100.0, 41.4), (200.0, 88.0)])
def test_regions_are_not_seen_in_the_dataset(ra, dec, tmp_path, monkeypatch):
    """Over borders of cells, RA 0 and near a pole, in any parts: order, ids, hosts and primaries of the whole."""
    ids, measured = survey(60, ra, dec)
    whole, _ = written(tmp_path / "whole", ids, measured, [range(60)])
    monkeypatch.setattr(partitions, "REGION_ROWS", 7)
    monkeypatch.setattr(partitions, "KEPT_ROWS", 30)
    monkeypatch.setattr(partitions, "CHAIN", 0.01)  # what is needed for a decision has to be found out
    order = np.random.default_rng(1).permutation(60)
    pieces, _ = written(tmp_path / "pieces", ids, measured, np.array_split(order, 9))
    assert pieces.equals(whole)
    index = whole["_healpix_29"].to_numpy()
    assert (np.diff(index) >= 0).all() and whole["id"].to_pylist() == list(range(1, 181))
    rows = {(row["cutout_id"], row["score"]): row for row in whole.to_pylist()}
    for name, columns in zip(ids.tolist(), measured, strict=True):
        host, companion = (rows[name, np.float32(columns["score"][i])] for i in (0, 1))
        assert companion["host"] == host["id"] and host["host"] == 0
    votes = whole["votes"].to_numpy()
    assert np.array_equal(votes, np.where(whole["is_target"], whole["cutout_id"].to_numpy() * 3, 0))


def test_primaries_are_those_of_all_rows_at_once(tmp_path, monkeypatch):
    """Chains of views that lead from region to region are decided as a whole."""
    monkeypatch.setattr(partitions, "REGION_ROWS", 5)
    ids, measured = survey(60, 44.7, -0.3)
    table, _ = written(tmp_path / "out", ids, measured, np.array_split(np.arange(60), 5))
    keys = partitions._Keys.of(table, 0)
    i, j = same_galaxy(keys.ra, keys.dec, keys.cutout_id, keys.area, keys.flags)
    assert len(i) > 20 and np.array_equal(table["is_primary"], primary(i, j, keys.rank()))
    assert 0 < np.count_nonzero(table["is_primary"]) < 180


def test_a_dense_cell_is_written_in_pieces(tmp_path, monkeypatch):
    """A partition with more rows than are held in memory is one file of several row groups."""
    monkeypatch.setattr(partitions, "REGION_ROWS", 40)
    ids, measured = survey(60, 100.0, 30.0)
    _, files = written(tmp_path / "out", ids, measured, [range(60)])
    groups = [pyarrow.parquet.ParquetFile(tmp_path / each["path"]).num_row_groups for each in files]
    assert max(groups) > 1 and len({each["Npix"] for each in files}) == len(files)


def test_parts_with_other_columns_share_one_schema(tmp_path):
    """Images of a list may have magnitudes or none: every partition has all columns, without a value where none is."""
    ids, measured = survey(20, 44.7, -0.3)
    far, others = survey(20, 200.0, 50.0)
    others = [{**columns, "mag_r": np.full(3, 17.5)} for columns in others]
    groups = [range(20), range(20, 40)]
    _, files = written(tmp_path / "out", np.concatenate([ids, far + 100]), measured + others, groups)
    schemas = [pyarrow.parquet.ParquetFile(tmp_path / each["path"]).schema_arrow for each in files]
    assert len(files) > 1 and all(schema.equals(schemas[0]) for schema in schemas)
    assert np.count_nonzero(pyarrow.dataset.dataset(tmp_path / "out").to_table()["mag_r"].is_valid()) == 60

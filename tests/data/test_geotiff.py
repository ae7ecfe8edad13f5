"""GeoTIFFs and many bands: known values after reading, scaling, measuring and writing; what is refused."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

from common import rasters
from common.bands import Bands, read_bands_file, read_pixels
from common.decoding import MAX_BYTES
from common.errors import InputError
from common.georeference import ControlPoint, Georeference, map_faults
from common.images import IGNORE, Labels, read_image, read_mask
from common.rasters import place_of, read_raster, write_geotiff
from common.tiff_tags import read_tags
from tests.conftest import SHARED

rasterio = pytest.importorskip("rasterio")
GEOTIFFS = SHARED / "data" / "geotiff"
NUMBERS = np.array([[[100, 1000, 7, 1]], [[600, 3000, 0, 2]], [[0, 0, 0, 0]]], np.uint16)  # (3, 1, 4), last: no data
STATED = {"ranges": [[100, 1100], [0, 3000], [0, 10], [0, 2]], "dtype": "uint16", "nodata": 0}


def place(code="EPSG:32614", **changes):
    crs = rasterio.crs.CRS.from_string(code)
    found = Georeference((3, 1), crs.to_wkt(), f"EPSG:{crs.to_epsg()}", (30.0, 0.0, 440280.0, 0.0, -30.0, 3159720.0))
    return dataclasses.replace(found, **changes)


def written(path, array, **profile):
    """A TIFF (H, W, bands) as rasterio writes it."""
    array = np.atleast_3d(array)
    shape = {"height": array.shape[0], "width": array.shape[1], "count": array.shape[2], "dtype": array.dtype.name}
    extra = {key: profile.pop(key) for key in ("scales", "offsets", "mask", "colormap") if key in profile}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", driver="GTiff", **shape, **profile) as file,
    ):
        file.write(array.transpose(2, 0, 1))
        for name in ("scales", "offsets"):
            if name in extra:
                setattr(file, name, extra[name])
        if "mask" in extra:
            file.write_mask(extra["mask"])
        if "colormap" in extra:
            file.write_colormap(1, extra["colormap"])
    return path


def test_values_after_scaling(tmp_path):
    path = written(tmp_path / "a.tif", NUMBERS, nodata=0)
    pixels = read_pixels(path, Bands(**STATED))
    assert pixels.valid[:, 0].tolist() == [True, True, False]
    assert pixels.values[:, 0].tolist() == [[0, 85, 178.5, 127.5], [127.5, 255, 0, 255], [0, 0, 0, 0]]
    swapped = read_pixels(path, Bands(ranges=[[0, 10], [0, 3000], [100, 1100]], take=[3, 2, 1], nodata=0))
    assert swapped.values[0, 0].tolist() == [178.5, 85, 0]
    own = read_pixels(path, Bands(**{**STATED, "per_image": [0, 100]}))  # each band from its least to its largest
    assert own.values[:2, 0].tolist() == [[0, 0, 255, 0], [255, 255, 0, 255]]


def test_scale_and_offset_of_the_file_come_before_the_range(tmp_path):
    path = written(tmp_path / "a.tif", NUMBERS[..., :2], scales=(0.1, 0.001), offsets=(-10, 0))
    bands = Bands(ranges=[[0, 100], [0, 3]], dtype="uint16", scales=[0.1, 0.001], offsets=[-10, 0])
    pixels = read_pixels(path, bands)
    assert np.allclose(pixels.values[:2, 0], [[0, 85], [127.5, 255]])
    assert (bands.stored(pixels.values / 127.5 - 1)[:2] == NUMBERS[:2, :, :2]).all()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_numbers_come_back_as_they_were(tmp_path, dtype):
    numbers = np.random.default_rng(0).integers(1, 100, (20, 30, 5)).astype(dtype)
    bands = Bands(ranges=[[0, 100]] * 5, dtype=dtype, nodata=0)
    write_geotiff(tmp_path / "a.tif", numbers, place(size=(20, 30)), nodata=0, names=["blue"] * 5)
    back = bands.stored(read_pixels(tmp_path / "a.tif", bands).values / 127.5 - 1)
    assert back.dtype == dtype and np.allclose(back, numbers, atol=1e-4)
    assert (bands.stored(np.full((2, 2, 5), -1.0)) != 0).any(-1).all()  # what is painted has data
    with rasterio.open(tmp_path / "a.tif") as file:
        assert file.profile["tiled"] and file.compression.name == "deflate" and file.overviews(1) == [2]
        assert file.crs.to_epsg() == 32614 and file.transform[:6] == place().transform and file.nodata == 0
        assert "alpha" not in [meaning.name for meaning in file.colorinterp] and file.descriptions[0] == "blue"
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]


def test_control_points_are_kept_where_there_is_no_transform(tmp_path):
    points = tuple(ControlPoint(r, c, 10.0 + c, 50.0 - r) for r in (0.0, 8.0) for c in (0.0, 8.0))
    lies = place("EPSG:4326", size=(8, 8), transform=None, points=points)
    write_geotiff(tmp_path / "a.tif", np.ones((16, 16, 1), np.uint8), lies)
    found = place_of(tmp_path / "a.tif")
    assert found.transform is None and found.code == "EPSG:4326"
    assert [(p.row, p.column, p.x, p.y) for p in found.points] == [(2 * p.row, 2 * p.column, p.x, p.y) for p in points]


def test_what_has_no_data(tmp_path):
    rgb = np.random.default_rng(0).integers(1, 255, (8, 8, 3)).astype(np.uint8)
    hole = np.zeros((8, 8), bool)
    hole[:2, :3] = True
    alpha = np.dstack([rgb, np.where(hole, 0, 255).astype(np.uint8)])
    files = [
        written(tmp_path / "alpha.tif", alpha, photometric="RGB", alpha="YES"),
        written(tmp_path / "mask.tif", rgb, mask=~hole, photometric="RGB"),
        written(tmp_path / "nodata.tif", np.where(hole[..., None], 0, rgb), nodata=0, photometric="RGB"),
    ]
    for path in files:
        for bands in (None, Bands(ranges=[[0, 255]] * 3)):
            pixels = read_pixels(path, bands)
            assert (pixels.valid == ~hole).all() and (pixels.values == np.where(hole[..., None], 0, rgb)).all(), path
    holes = np.where(hole[..., None], np.nan, rgb).astype(np.float32)
    floats = read_pixels(written(tmp_path / "nan.tif", holes), Bands(ranges=[[0, 255]] * 3, dtype="float32"))
    assert (floats.valid == ~hole).all()
    # infrared that its writer has marked as alpha is a band
    infrared = np.dstack([rgb, rgb[..., 0]])
    path = written(tmp_path / "infrared.tif", infrared, photometric="RGB", alpha="YES")
    assert (read_pixels(path, Bands(ranges=[[0, 255]] * 4)).values == infrared).all()


def test_masks(tmp_path):
    ids = np.array([[0, 1], [2, -1]], np.int16)
    path = written(tmp_path / "a.tif", ids, nodata=-1)
    assert read_mask(path).tolist() == [[0, 1], [2, IGNORE]]
    assert Labels(3, ignore_index=9).read(path).tolist() == [[0, 1], [2, IGNORE]]
    with pytest.raises(InputError, match="-1 are not in"):
        read_mask(written(tmp_path / "b.tif", ids))
    packed = written(tmp_path / "c.tif", np.abs(ids).astype(np.uint8), compress="zstd", BIGTIFF="YES")
    assert read_mask(packed).tolist() == [[0, 1], [2, 1]]
    colors = {i: (9 * i, 0, 0, 255) for i in range(3)}
    palette = written(tmp_path / "d.tif", np.abs(ids).astype(np.uint8), nodata=0, colormap=colors)
    assert read_mask(palette).tolist() == [[IGNORE, 1], [2, 1]]


def test_kinds_of_files(tmp_path):
    numbers = np.random.default_rng(0).integers(0, 4096, (70, 90, 3)).astype(np.uint16)
    kinds = [
        {"compress": "lzw", "tiled": True, "blockxsize": 32, "blockysize": 32},
        {"compress": "deflate", "predictor": 2, "interleave": "band"},
        {"compress": "zstd", "BIGTIFF": "YES"},
        {"NBITS": 12},
        {"driver": "COG"},
    ]
    for number, kind in enumerate(kinds):
        path = tmp_path / f"{number}.tif"
        if kind.pop("driver", None):
            from rasterio.shutil import copy

            copy(written(tmp_path / "plain.tif", numbers), path, driver="COG")
        else:
            written(path, numbers, **kind)
        assert (read_raster(path).values == numbers).all()
        assert (read_tags(path).width, read_tags(path).bands) == (90, 3)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
        with pytest.raises(InputError, match="cannot be read"):
            read_raster(path)


def test_what_is_refused_in_one_line(tmp_path):
    for array, bands, says in (
        (NUMBERS, None, "16 bits a channel.*`tisynth stats`"),
        (NUMBERS.astype(np.float32), None, "32 bits a channel.*`tisynth stats`"),
        (NUMBERS, Bands(ranges=[[0, 1]] * 3), "has 4 bands, the model reads 3"),
        (NUMBERS, Bands(ranges=[[0, 1]] * 2, take=[1, 9]), "has 4 bands, the model reads bands 1, 9"),
        (np.ones((4, 4, 20), np.uint8), Bands(ranges=[[0, 1]], take=[1]), "at most 16"),
        (np.ones((4, 4, 1), np.complex64), Bands(ranges=[[0, 1]]), "complex"),
        (np.zeros((4, 4, 1), np.uint16), Bands(ranges=[[0, 1]], nodata=0), "no pixel with data"),
        (np.full((4, 4, 4), 9, np.uint8), Bands(**STATED), "has 8 bits, the model reads uint16"),
        (NUMBERS, Bands(ranges=[[0, 255]] * 4), "has numbers up to 3000, the stated ranges are of bytes"),
    ):
        with pytest.raises(InputError, match=says) as error:
            read_pixels(written(tmp_path / "a.tif", array), bands)
        assert "\n" not in str(error.value)
    nowhere = dataclasses.replace(place(), crs="", code="")
    found = map_faults({1: place(), 2: None, 3: nowhere, 4: place("EPSG:32618"), 5: place()})
    assert list(found) == [3, 4] and "has no CRS" in found[3] and "EPSG:32618" in found[4]


def test_numbers_of_other_bits_that_are_in_range(tmp_path):
    small, own = NUMBERS // 100, {"ranges": [[0, 255]] * 4}  # what is meant are bytes
    assert (read_pixels(written(tmp_path / "a.tif", small), Bands(**own)).values == small).all()
    scaled = written(tmp_path / "b.tif", NUMBERS, scales=(0.01,) * 4, offsets=(0,) * 4)
    assert np.allclose(read_pixels(scaled, Bands(**own)).values, NUMBERS / 100)
    each = Bands(ranges=[[100, 1100], [0, 3000]], dtype="uint16", nodata=0, per_image=[0, 100])
    bytes_ = small[..., :2].astype(np.uint8)
    assert read_pixels(written(tmp_path / "c.tif", bytes_), each).values[:2, 0].tolist() == [[0, 0], [255, 255]]


def test_large_files_are_judged_by_their_headers(tmp_path):
    path = written(tmp_path / "a.tif", NUMBERS)
    os.truncate(path, MAX_BYTES + 1)  # of which the disk keeps the start alone
    assert (read_raster(path, part=(1, 0, 1, 1)).values == NUMBERS[1:2]).all()
    assert (read_raster(path).values == NUMBERS).all()


def test_alpha_is_judged_once_where_a_file_is_read_in_parts(tmp_path, monkeypatch):
    judged = []
    monkeypatch.setattr(rasters, "says_where", lambda band: judged.append(band.max()) or True)
    rgb, path = np.full((8, 8, 3), 9, np.uint8), tmp_path / "a.tif"
    for opaque in (255, 1):  # the second file is another one
        alpha = np.full((8, 8), opaque, np.uint8)
        alpha[0] = 0
        written(path, np.dstack([rgb, alpha]), photometric="RGB", alpha="YES")
        os.utime(path, ns=(opaque, opaque))
        for top in (0, 4):
            valid = read_raster(path, part=(top, 0, 4, 8)).valid
            assert (valid[1:]).all() and valid[0].all() == (top > 0)
    assert judged == [255, 1]


def test_without_rasterio(tmp_path, monkeypatch):
    rgb = np.random.default_rng(0).integers(0, 255, (8, 8, 3)).astype(np.uint8)
    plain = written(tmp_path / "plain.tif", rgb, photometric="RGB", crs="EPSG:32614")
    many = written(tmp_path / "many.tif", NUMBERS)

    def absent():
        raise ImportError

    monkeypatch.setattr(rasters, "_rasterio", absent)
    assert (read_image(plain) == rgb).all()
    with pytest.raises(InputError, match=r"pip install '\.\[geo\]' in the folder"):
        read_pixels(many, Bands(**STATED))


def test_stats(tmp_path, cli):
    values = np.arange(1, 101, dtype=np.uint16).reshape(10, 10)
    array = np.dstack([values, values * 10, np.full_like(values, 7)])
    array[0, 0] = 0
    written(tmp_path / "a.tif", array, nodata=0)
    written(tmp_path / "b.tif", array + 1, nodata=0)
    out = tmp_path / "bands.yaml"
    said = cli("stats", "--images", tmp_path, "--percentiles", 0, 100, "--rgb", 3, 2, 1, "--factor", 2, "--out", out)
    assert "band 2: 1 to 1001" in said
    bands = read_bands_file(out)
    assert bands.ranges == [[1, 101], [1, 1001], [1, 8]] and bands.seen == (2, 1, 0)
    assert (bands.dtype, bands.nodata) == ("uint16", 0)
    params = yaml.safe_load(out.read_text())["model"]["params"]
    basis = np.array(params["first_stage_config"]["params"]["basis"])
    assert np.allclose(basis @ basis.T, np.eye(3), atol=1e-6) and params["channels"] == 12
    least = np.float32(-3.4028235e38)
    (tmp_path / "floats").mkdir()
    written(tmp_path / "floats" / "a.tif", np.where(array == 0, least, array.astype(np.float32)))
    cli("stats", "--images", tmp_path / "floats", "--percentiles", 0, 100, "--nodata=-3.4028235e38", "--out", out)
    assert read_bands_file(out).ranges == [[2, 100], [20, 1000], [7, 8]]
    assert read_bands_file(out).nodata == pytest.approx(least)
    shutil.rmtree(tmp_path / "floats")
    written(tmp_path / "c.tif", array[..., :2], nodata=0)
    assert "its bands 2, but" in cli.refused("stats", "--images", tmp_path, "--out", tmp_path / "no.yaml")
    assert not (tmp_path / "no.yaml").exists()


def test_the_first_stage_of_many_bands_loses_nothing():
    torch = pytest.importorskip("torch")
    from ldm.models.autoencoder import SpaceToDepth

    basis, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((7, 7)))
    stage = SpaceToDepth(4, None, basis.tolist())
    image = torch.rand(2, 7, 8, 8) * 2 - 1
    assert stage.latent_channels == 7 * 16 and (stage.decode(stage.encode(image).mode()) - image).abs().max() < 2e-6
    with pytest.raises(InputError, match="orthonormal"):
        SpaceToDepth(4, None, [[1.0, 1.0], [0.0, 1.0]])


@pytest.mark.skipif(not GEOTIFFS.is_dir(), reason="the real files are not at hand")
def test_real_files():
    hls = read_pixels(
        GEOTIFFS / "hls_10band_float32_utm14.tif", Bands(ranges=[[0, 10000]] * 10, dtype="float32", nodata=-9999)
    )
    assert hls.values.shape == (224, 224, 10) and hls.valid.all() and 30 < hls.values[..., 5].mean() < 130
    landsat = GEOTIFFS / "landsat_3band_uint16_utm18.tif"
    with pytest.raises(InputError, match="`tisynth stats`"):
        read_image(landsat)
    seen = read_pixels(landsat, Bands(ranges=[[0, 40000]] * 3, dtype="uint16"))
    assert seen.valid.mean() == pytest.approx(0.6754, abs=1e-3)
    naip = GEOTIFFS / "naip_4band_rgbi_uint8_utm14.tif"
    with pytest.raises(InputError, match="a fourth band"):
        read_image(naip)
    assert read_pixels(naip, Bands(ranges=[[0, 255]] * 4)).values.dtype == np.uint8
    shown = read_pixels(naip, Bands(ranges=[[0, 255]] * 3, take=[4, 1, 2]))
    assert shown.values[..., 0].max() == 221
    assert np.unique(read_mask(GEOTIFFS / "geotiff_int16_burnscar_mask_nodata-1.tif")).tolist() == [0, 1]


def test_a_list_of_two_maps_is_refused(tmp_path):
    from cldm.data.pairs import PairedImages

    lines = []
    for number, code in enumerate(("EPSG:32614", "EPSG:32618")):
        ids = np.arange(32 * 32, dtype=np.uint8).reshape(32, 32) % 2
        Image.fromarray(ids).save(tmp_path / f"m{number}.png")
        write_geotiff(tmp_path / f"i{number}.tif", np.full((32, 32, 3), 9, np.uint8), place(code, size=(32, 32)))
        lines.append(json.dumps({"source": f"m{number}.png", "target": f"i{number}.tif", "prompt": ""}))
    (tmp_path / "l.json").write_text("\n".join(lines))
    given = {"data_root": tmp_path, "txt_file": tmp_path / "l.json", "multiple_of": 32}
    with pytest.raises(InputError, match=r"line 2, field target: i1.tif has the CRS EPSG:32618, but .*EPSG:32614"):
        PairedImages(**given)
    item = PairedImages(**given, several_maps=True)[0]
    assert item["valid"].shape == (1, 32, 32) and item["valid"].all()

"""GeoTIFFs stay what they are: bands, numbers, and their place on the map, whole or in tiles; so do their masks."""

import json

import numpy as np
import pytest

from common.command import read_options
from importing.checks.options import CheckOptions
from importing.checks.run import check_data
from tests.conftest import SHARED
from tests.importing.conftest import NAMES

rasterio = pytest.importorskip("rasterio")


def write(path, values, **more):
    """A GeoTIFF of (bands, H, W)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bands, height, width = values.shape
    size = {"count": bands, "height": height, "width": width, "dtype": values.dtype}
    place = {"crs": "EPSG:32614", "transform": rasterio.Affine(10, 0, 5e5, 0, -10, 4e6)}
    with rasterio.open(path, "w", driver="GTiff", **{**size, **place, **more}) as file:
        file.write(values)


def test_many_bands_in_tiles(data):
    values = np.random.default_rng(0).integers(1, 9000, (5, 32, 48)).astype(np.uint16)
    values[:, 4:20, 16:40] = 0
    write(data.root / "images" / "a.tif", values, nodata=0)
    ids = np.zeros((32, 48), np.int16)
    ids[:, 24:] = 1
    ids[30:] = -1
    write(data.root / "masks" / "a.tif", ids[None], nodata=-1)
    out = data.imported("--class-names", *NAMES[:2], "--tile", 16)
    assert len(list(out.glob("img_train/*.tif"))) == 6
    with (
        rasterio.open(out / "img_train" / "a_y0016_x0032.tif") as file,
        rasterio.open(data.root / "images/a.tif") as whole,
    ):
        assert (file.read() == values[:, 16:, 32:]).all() and file.nodata == 0 and file.dtypes[0] == "uint16"
        assert file.crs == whole.crs and file.transform @ (0, 0) == whole.transform @ (32, 16)
    expected = np.where((values[0] == 0) | (ids < 0), 255, ids)
    with rasterio.open(out / "label_train" / "a_y0016_x0032.tif") as file:
        assert (file.read(1) == expected[16:, 32:]).all() and file.nodata == 255
        assert file.transform @ (0, 0) == (5e5 + 320, 4e6 - 160) and file.crs.to_epsg() == 32614
    found = check_data(read_options(CheckOptions, "", [str(out), "--html", str(data.root / "page.html")]), len)
    assert found.clean and "bands" not in json.dumps(found.report["findings"])


def test_a_mask_is_a_geotiff_where_its_image_names_its_map(data):
    for name, crs in (("a", "EPSG:32614"), ("b", None)):
        write(data.root / "images" / f"{name}.tif", np.full((3, 32, 32), 9, np.uint8), crs=crs, photometric="RGB")
        data.save(f"masks/{name}.png", np.ones((32, 32), np.uint8))
    out = data.imported("--class-names", *NAMES[:2])
    assert sorted(path.name for path in out.glob("label_*/*")) == ["a.tif", "b.png"]


def test_real_geotiffs(data):
    folder = SHARED / "data" / "geotiff"
    if not folder.is_dir():
        pytest.skip("the GeoTIFFs are not at hand")
    for path in folder.glob("*m1[48].tif"):
        with rasterio.open(path) as file:
            height, width = file.shape
        (data.root / "images").mkdir(exist_ok=True)
        (data.root / "images" / path.name).write_bytes(path.read_bytes())
        write(data.root / "masks" / path.name, np.ones((1, height, width), np.uint8))
    out = data.imported("--class-names", *NAMES[:2], "--split", 0.5, 0.5)
    for path in folder.glob("*m1[48].tif"):
        assert next(out.glob(f"img_*/{path.name}")).read_bytes() == path.read_bytes()
    landsat = data.masks()["landsat_3band_uint16_utm18"]
    assert set(np.unique(landsat)) == {1, 255} and landsat.shape == (790, 779)
    found = check_data(read_options(CheckOptions, "", [str(out), "--near", "0"]), len)
    codes = {finding["code"]: finding for finding in found.report["findings"]}
    assert found.clean and codes["bands"]["count"] == 2

import base64
import io
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from common.errors import InputError
from importing.polygons import Drawing, Shape, inside, run_lengths, runs
from tests.importing.conftest import NAMES, SIDE, known_mask

SQUARE = [4, 4, 20, 4, 20, 12, 4, 12]  # x 4..19, y 4..11
LATER = [10, 8, 28, 8, 28, 30, 10, 30]
EXPECTED = np.full((SIDE, SIDE), 255, np.uint8)
EXPECTED[4:12, 4:20] = 1
EXPECTED[8:30, 10:28] = 2


def whole(patch, size):
    found = np.zeros(size, np.uint8)
    patch.paint(found, 1)
    return found.astype(bool)


def test_a_pixel_belongs_where_its_center_lies():
    square = np.array([[2, 1], [6, 1], [6, 5], [2, 5]], float)
    expected = np.zeros((8, 9), bool)
    expected[1:5, 2:6] = True
    assert (whole(inside([square], (8, 9)), (8, 9)) == expected).all()
    expected[2:4, 3:5] = False
    assert (whole(inside([square, square / 2 + [2, 1.5]], (8, 9)), (8, 9)) == expected).all()
    left, right = np.array([[0, 0], [3.3, 0], [5.1, 8], [0, 8]]), np.array([[3.3, 0], [9, 0], [9, 8], [5.1, 8]])
    both = [whole(inside([ring], (8, 9)), (8, 9)) for ring in (left, right)]
    assert (both[0] ^ both[1]).all()


def test_polygons_and_runs_are_those_of_the_usual_libraries():
    features = pytest.importorskip("rasterio.features")
    coco = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(0)
    for _ in range(50):
        ring = rng.uniform(-5, 40, (rng.integers(3, 12), 2))
        shape = {"type": "Polygon", "coordinates": [[*ring.tolist(), ring[0].tolist()]]}
        theirs = features.rasterize([(shape, 1)], out_shape=(32, 35)).astype(bool)
        assert (whole(inside([ring], (32, 35)), (32, 35)) == theirs).all()
        mask = rng.random(rng.integers(1, 40, 2)) < rng.random()
        text = coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
        assert (runs(run_lengths(text), mask.shape) == mask).all()


def coco(data, annotations, **more):
    data.image("a.png")
    images = [{"id": 7, "file_name": "a.png", "height": SIDE, "width": SIDE}]
    categories = [{"id": 9, "name": "road"}, {"id": 4, "name": "forest"}, {"id": 2, "name": "water"}]
    made = [{"id": i, "image_id": 7, "iscrowd": 0, **entry} for i, entry in enumerate(annotations)]
    return data.write("all.json", {"images": images, "annotations": made, "categories": categories, **more})


def two(first=SQUARE, second=LATER):
    return [{"category_id": 4, "segmentation": [first]}, {"category_id": 9, "segmentation": [second]}]


@pytest.mark.parametrize(("order", "square"), [("last", 2), ("first", 1), ("smallest", 1)])
def test_coco_polygons(data, order, square):
    coco(data, two())
    data.imported("--on-top", order)
    expected = EXPECTED.copy()
    expected[8:12, 10:20] = square
    assert (data.masks()["a"] == expected).all()
    assert data.classes() == ["water", "forest", "road"] and data.report["format"] == "coco"


def test_coco_runs_crowds_and_background(data):
    mask = known_mask(1) == 1
    flat = mask.T.ravel()
    ends = np.flatnonzero(np.diff(np.concatenate(([False], flat, [False]))))
    counts = np.diff(np.concatenate(([0], ends, [flat.size]))).tolist()
    runs_of = {"size": [SIDE, SIDE], "counts": counts}
    coco(data, [{"category_id": 9, "segmentation": runs_of, "iscrowd": 1}])
    data.imported("--background", "water")
    assert (data.masks()["a"] == np.where(mask, 2, 0)).all()
    data.out = data.out.with_name("second")
    data.imported("--background", "land", "--crowd", "ignore")
    assert data.classes()[0] == "land" and (data.masks()["a"] == np.where(mask, 255, 0)).all()


def test_a_compressed_run(data):
    packed = "R35k0000ni0"  # as pycocotools writes the columns 3..5 of the rows 2..6
    coco(data, [{"category_id": 9, "segmentation": {"size": [SIDE, SIDE], "counts": packed}}])
    data.imported()
    expected = np.full((SIDE, SIDE), 255, np.uint8)
    expected[2:7, 3:6] = 2
    assert (data.masks()["a"] == expected).all()
    data.out = data.out.with_name("second")
    coco(data, [{"category_id": 9, "segmentation": {"size": [SIDE, SIDE], "counts": packed[:-3]}}])
    with pytest.raises(
        InputError, match=r"all.json, annotations\[0\]: its run lengths sum to \d+, but a mask of 32 x 32"
    ):
        data.imported()
    assert not data.out.exists()


@pytest.mark.parametrize(("order", "middle"), [("last", 29), ("first", 0), ("smallest", 0)])
def test_many_runs_take_the_memory_of_one(order, middle):
    side, lengths = 256, range(8000, 8000 + 30 * 256, 256)  # of each more than of the one before, from the middle on
    start = side * side // 2
    shapes = tuple(
        Shape(label, "", counts=np.array([start, length, side * side - start - length]), size=(side, side))
        for label, length in enumerate(lengths)
    )
    tracemalloc.start()
    try:
        ids = Drawing(shapes, None, "", on_top=order).read((side, side), [])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert ids[0, side // 2] == middle and (ids != 255).sum() == lengths[-1]
    assert peak < 20 * side * side  # bytes; one is 65,536


def test_coco_of_roboflow(data):
    for split, number in (("train", 0), ("valid", 1)):
        data.image(f"{split}/{number}.jpg", number)
        data.write(
            f"{split}/_annotations.coco.json",
            {
                "info": {"version": "1"},
                "images": [{"id": 0, "file_name": f"{number}.jpg", "height": SIDE, "width": SIDE}],
                "categories": [
                    {"id": 0, "name": "scenes", "supercategory": "none"},
                    {"id": 1, "name": "forest", "supercategory": "scenes"},
                ],
                "annotations": [{"id": 0, "image_id": 0, "category_id": 1, "segmentation": [SQUARE], "iscrowd": 0}],
            },
        )
    out = data.imported()
    assert data.classes() == ["forest"] and set(data.masks()) == {"0", "1"}
    assert (out / "label_train" / "0.png").is_file() and (out / "label_test" / "1.png").is_file()


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        (two([40, 4, 50, 4, 50, 12]), r"annotations\[0\]: lies outside of its image \(32 x 32 px.*x 40 to 50"),
        (two([1, 2, 3]), r"annotations\[0\], field segmentation: must be polygons"),
        ([{"category_id": 5, "segmentation": [SQUARE]}], r"annotations\[0\]: is of category 5, which"),
        ([{"category_id": 4, "segmentation": [SQUARE], "image_id": 8}], r"annotations\[0\]: is of image 8, which"),
        ([{"category_id": 4, "segmentation": {"size": [9, 9], "counts": [81]}}], r"its mask is 9 x 9 px, the image 32"),
        (
            [{"category_id": 4, "segmentation": {"size": [32, 32], "counts": "~"}}],
            r"annotations\[0\]: its counts are no",
        ),
        ([{"category_id": 4, "segmentation": {"size": [32, 32], "counts": [-5, 1029]}}], r"run length -5 is below 0"),
    ],
)
def test_coco_that_is_refused(data, annotations, message):
    coco(data, annotations)
    with pytest.raises(InputError, match=message):
        data.imported()
    assert [path.name for path in data.root.parent.iterdir() if not path.name.endswith(".lock")] == ["given"]


def test_coco_files_that_are_refused(data):
    path = coco(data, two([-4, 4, 20, 4, 20, 12, -4, 12]))
    data.imported()
    assert any("reaches beyond its image, and is clipped" in note for note in data.report["notes"])
    data.out = data.out.with_name("second")
    text = path.read_text()
    path.write_text(text.replace('"height": 32', '"height": 30'))
    with pytest.raises(InputError, match=r"images\[0\]: is for an image of 32 x 30 px"):
        data.imported()
    path.write_text(text.replace("a.png", "b.png"))
    with pytest.raises(InputError, match=r"images\[0\]: b.png is not there; put the images"):
        data.imported()
    path.write_text(text.replace(', "annotations"', ',\n "annotations'))
    with pytest.raises(InputError, match=r"all.json: no readable JSON \(.*line 2 column"):
        data.imported(source=path)
    path.write_text(text.replace('"segmentation"', '"segments_info"'))
    with pytest.raises(InputError, match="panoptic form"):
        data.imported()


def labelme(data, shapes, version="5.4.1", name="a", **more):
    data.image(f"{name}.png")
    size = {"imageHeight": SIDE, "imageWidth": SIDE, "imageData": None}
    content = {"version": version, "flags": {}, "shapes": shapes, "imagePath": f"..\\x\\{name}.png", **size, **more}
    return data.write(f"{name}.json", content)


def shape(label, points, kind="polygon", **more):
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, **more}


def test_labelme(data):
    stored = io.BytesIO()
    Image.fromarray(np.full((2, 3), 255, np.uint8)).save(stored, "PNG")
    labelme(
        data,
        [
            shape("forest", np.reshape(SQUARE, (4, 2)).tolist()),
            shape("road", [[10, 8], [28, 30]], "rectangle"),
            shape("_background_", [[1, 2], [3, 3]], "mask", mask=base64.b64encode(stored.getvalue()).decode()),
            shape("__ignore__", [[12.5, 20.5], [12.5, 22.0]], "circle"),
            shape("road", [[1, 1]], "point"),
        ],
    )
    data.imported()
    ids = data.masks()["a"]
    expected = np.where(EXPECTED == 255, 0, EXPECTED)
    assert data.classes() == ["_background_", "forest", "road"]
    assert (ids[:18] == expected[:18]).all() and (ids[2:4, 1:4] == 0).all()
    assert ids[20, 12] == 255 and 5 <= (ids == 255).sum() <= 9


@pytest.mark.parametrize(
    ("shapes", "more", "message"),
    [
        ([shape("a", [[1, 1], [5, 1], [5, 5]])], {"version": "9.1"}, r"a.json, field version: 9.1 is none"),
        ([shape("a", [[1, 1], [5, 1], [5, 5]])], {"name": "b", "imagePath": "no.png"}, None),
        ([shape("a", [[1, 1], [5, "x"]])], {}, r"shapes\[0\], field points: must be a list"),
        ([shape("a", [[50, 1], [60, 1], [50, 5]])], {}, r"shapes\[0\]: lies outside of its image"),
        ([shape("a", [[1, 1], [9, 1], [5, 5]])], {"imageWidth": 64}, "is for an image of 64 x 32 px"),
        ([], {}, "its files have no shape"),
        ([{"points": []}], {}, r"shapes\[0\], field label: must be a text"),
    ],
)
def test_labelme_that_is_refused(data, shapes, more, message):
    labelme(data, shapes, **more)
    if message is None:  # the image of the file's own name is taken
        data.imported()
        return
    with pytest.raises(InputError, match=message):
        data.imported()


def geotiff(data, name, number=0, crs="EPSG:32614", origin=(500000.0, 4000000.0)):
    rasterio = pytest.importorskip("rasterio")
    values = np.random.default_rng(number).integers(0, 255, (3, SIDE, SIDE), dtype=np.uint8)
    transform = rasterio.Affine(10, 0, origin[0], 0, -10, origin[1])
    options = {"driver": "GTiff", "height": SIDE, "width": SIDE, "count": 3, "dtype": "uint8", "photometric": "RGB"}
    (data.root / name).parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(data.root / name, "w", crs=crs, transform=transform, **options) as file:
        file.write(values)
    return transform


def features(transform, crs=None, shift=0):
    """The two polygons on the map; as GeoJSON has them, in degrees, if a map is given to turn them from."""
    from rasterio.warp import transform_geom

    made = []
    for name, flat in (("forest", SQUARE), ("road", LATER)):
        ring = [transform @ (x + shift, y) for x, y in np.reshape(flat, (4, 2)).tolist()]
        geometry = {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}
        if crs:
            geometry = transform_geom(crs, "EPSG:4326", geometry)
        made.append({"type": "Feature", "properties": {"landuse": name, "note": "x"}, "geometry": geometry})
    return {"type": "FeatureCollection", "features": made}


def test_polygons_on_a_map(data):
    pytest.importorskip("pyogrio")
    pytest.importorskip("shapely")
    transform = geotiff(data, "a.tif")
    path = data.write("areas.geojson", features(transform, "EPSG:32614"))
    data.imported()
    assert (data.masks()["a"] == np.where(EXPECTED == 255, 255, EXPECTED - 1)).all()
    assert data.classes() == ["forest", "road"] and data.report["format"] == "vector"
    data.out = data.out.with_name("second")
    data.imported("--class-names", "water", "road", "forest", "--background", "water", "--on-top", "first")
    assert np.bincount(data.masks()["a"].ravel()).tolist() == [SIDE**2 - 484, 22 * 18 - 40, 128]
    data.out = data.out.with_name("third")
    with pytest.raises(InputError, match=r"class_field kind: .*areas.geojson has the fields landuse, note"):
        data.imported("--class-field", "kind")
    path.write_text(path.read_text().replace("landuse", "kind"))
    with pytest.raises(InputError, match=r"class_field is not given: .*fields kind, note; name that of the class"):
        data.imported()
    data.write("areas.geojson", features(transform, "EPSG:32614", shift=1000))
    with pytest.raises(InputError, match=r"none of its 2 polygons lies in an image"):
        data.imported()
    geotiff(data, "a.tif", crs=None)
    with pytest.raises(InputError, match=r"a.tif: names no coordinate system"):
        data.imported()


def test_layers_of_an_image_are_files_of_its_name(data):
    pytest.importorskip("pyogrio")
    pytest.importorskip("shapely")
    forest, road = features(geotiff(data, "a.tif"), "EPSG:32614")["features"]
    for folder, feature in (("forest", forest), ("road", road)):
        (data.root / folder).mkdir()
        data.write(f"{folder}/a.geojson", {"type": "FeatureCollection", "features": [feature]})
    data.imported()
    assert (data.masks()["a"] == np.where(EXPECTED == 255, 255, EXPECTED - 1)).all()


@pytest.mark.parametrize("name", ["areas.gpkg", "areas.shp"])
def test_map_files_in_the_images_own_system(data, name):
    pyogrio = pytest.importorskip("pyogrio")
    shapely = pytest.importorskip("shapely")
    transform = geotiff(data, "a.tif")
    shapes = [shapely.geometry.shape(feature["geometry"]) for feature in features(transform)["features"]]
    columns = [np.array(["forest", "road"], object)]
    how = {"geometry_type": "Polygon", "crs": "EPSG:32614"}
    pyogrio.raw.write(data.root / name, shapely.to_wkb(shapes), columns, ["label"], **how)
    data.imported()
    assert (data.masks()["a"] == np.where(EXPECTED == 255, 255, EXPECTED - 1)).all()
    assert data.classes() == list(NAMES[1:])


def test_numbers_of_classes_on_a_map_are_those_of_mask_files(data):
    pytest.importorskip("pyogrio")
    pytest.importorskip("shapely")
    made = features(geotiff(data, "a.tif"), "EPSG:32614")
    for feature, number in zip(made["features"], (1, 2), strict=True):
        feature["properties"] = {"id": number + 6, "lulc": number}
    path = data.write("areas.geojson", made)
    table = data.write("classes.json", {"classes": list(NAMES)})
    with pytest.raises(InputError, match=r"class_field is not given: .*has the fields id, lulc"):
        data.imported("--classes", table)
    for words, expected in (
        (["--classes", table], EXPECTED),
        (["--classes", f"{table}:from1"], np.where(EXPECTED == 255, 255, EXPECTED - 1)),
    ):
        data.out = data.out.with_name(f"{data.out.name}_")
        data.imported(*words, "--class-field", "lulc")
        assert (data.masks()["a"] == expected).all()
    path.write_text(path.read_text().replace('"lulc": 1', '"lulc": 0'))  # which this table ignores
    data.out = data.out.with_name("last")
    data.imported("--classes", f"{table}:from1", "--class-field", "lulc")
    assert (data.masks()["a"] == np.where(EXPECTED == 2, 1, 255)).all()

"""The page in a real browser: painted, generated, downloaded; and its messages. Skipped where gradio is missing."""

import os
import shlex
import shutil
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.errors import InputError
from common.images import read_image, read_mask

gr = pytest.importorskip("gradio")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]


@pytest.fixture(scope="module")
def handlers(studio, tmp_path_factory):
    from web.handlers import Handlers

    return Handlers(studio, tmp_path_factory.mktemp("work"))


def test_a_refusal_is_a_message_in_one_line(handlers, tmp_path):
    from web.handlers import message, told

    assert message(InputError("‹mask_scale› 1e9:\nmust be less")) == "mask guidance 1e9: must be less"
    assert message(InputError(f"/tmp/w/gradio/{'5e' * 32}/a b.png: is no image")) == "a b.png: is no image"
    assert message(RuntimeError("boom\nand more")) == "this did not work (RuntimeError: boom and more)"
    (tmp_path / "m.png").write_text("no picture")
    for handler, given in ((handlers.load_mask, False), (handlers.segment, False)):
        with pytest.raises(gr.Error) as error:
            told(handler)(str(tmp_path / "m.png"), given)
        assert "m.png" in error.value.message and "\n" not in error.value.message and not error.value.print_exception
    with pytest.raises(gr.Error) as error:
        list(handlers.paint(None, 255, None, "", "fast", 1, 1))
    assert "the mask is empty" in error.value.message
    with pytest.raises(gr.Error, match="whole number"):
        list(handlers.paint(None, 0, None, "", "fast", 1.5, 1))


def test_the_editors_layers_are_the_mask(handlers, studio, scenes):
    path = scenes / "label_test" / "test_0000.png"
    canvas = handlers.load_mask(str(path), False)
    ids = read_mask(path)
    assert np.array_equal(handlers.ids_of(canvas), ids)
    canvas["layers"][0][:4] = 0  # rubbed out
    assert (handlers.ids_of(canvas)[:4] == 255).all() and (handlers.ids_of(canvas, 2)[:4] == 2).all()
    assert (handlers.ids_of(None) == 255).all() and (handlers.ids_of({"layers": [None]}) == 255).all()
    assert handlers.prompt_of(np.array([[0, 2, 255]], np.uint8), " ") == "a satellite image of water field"


def begins(studio, work):
    """What the page's sliders begin with."""
    from web.page import build

    page = build(studio, work)
    sliders = [block for block in page.blocks.values() if isinstance(block, gr.Slider)]
    assert all(one.minimum <= one.value <= one.maximum for one in sliders)
    return {one.elem_id: one.value for one in sliders}


@pytest.mark.parametrize(("scale", "mask_scale"), [(20.0, 8.0), (0.5, 0.0)])
def test_sliders_reach_what_the_page_begins_with(studio, tmp_path, scale, mask_scale):
    given = replace(studio.options, scale=scale, mask_scale=mask_scale, masks=None, references=None)
    found = begins(replace(studio, options=given), tmp_path)
    assert (found["scale"], found["mask_scale"], found["reference_scale"]) == (scale, mask_scale, 1.0)


def test_a_distilled_model_begins_without_guidance(distilled, tmp_path):
    assert begins(distilled, tmp_path)["scale"] == 1.0


@pytest.fixture
def address(options, tmp_path):
    """Of the page, served from this process."""
    from web.serve import make_server

    server = make_server(options, tmp_path)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    yield server.address
    server.stop()
    thread.join(30)


@pytest.fixture
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    with sync_api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)


def test_paint_generate_download(address, browser, cli, tmp_path, monkeypatch):
    page = browser.new_page(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    asked, errors = set(), []
    page.on("request", lambda request: asked.add(request.url.split("/")[2] if "//" in request.url else "data"))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address, timeout=60_000)
    editor = page.wait_for_selector("#mask canvas", timeout=60_000)
    page.wait_for_selector("#classes button[aria-pressed=true]")

    page.click("#paint")
    assert "the mask is empty" in page.wait_for_selector(".toast-body", timeout=30_000).inner_text()

    box = editor.bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    for brush, (left, top) in ((1, (-100, -60)), (3, (-100, 60))):
        page.click(f"#classes button[data-brush='{brush}']")
        page.wait_for_selector(f"#classes button[data-brush='{brush}'][aria-pressed=true]", timeout=20_000)
        page.wait_for_timeout(200)
        page.mouse.move(middle[0] + left, middle[1] + top)
        page.mouse.down()
        page.mouse.move(middle[0] - left, middle[1] + top, steps=6)
        page.mouse.up()
        page.wait_for_timeout(300)
    page.click("#paint")
    page.wait_for_function("document.querySelector('#command textarea').value != ''", timeout=60_000)
    page.wait_for_selector("#pictures figcaption:has-text('kept')", timeout=30_000)
    with page.expect_download() as image:
        page.click("#pictures a[download]")
    with page.expect_download() as everything:
        page.click("#download-all")
    page.click("label:has-text('What the filter would drop')")
    page.wait_for_selector("#pictures :text('Seed 42: the filter would')", timeout=30_000)
    command = page.input_value("#command textarea")
    assert asked <= {address.split("/")[2], "data"} and errors == []

    with zipfile.ZipFile(everything.value.path()) as file:
        file.extractall(tmp_path / "taken")
    here = tmp_path / "taken" / "tisynth"
    mask = read_mask(here / "mask.png")
    assert mask.shape == (32, 32) and set(np.unique(mask)) == {1, 3, 255}
    assert np.flatnonzero((mask == 1).any(1)).max() < np.flatnonzero((mask == 3).any(1)).min()
    monkeypatch.chdir(here)
    cli("inference", *shlex.split(command.replace("\\\n", " "))[2:])
    again = read_image(here / "again" / "mask_seed_42.png")
    assert (
        np.array_equal(read_image(image.value.path()), again) and image.value.suggested_filename == "mask_seed_42.png"
    )
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False" and Path(os.environ["GRADIO_TEMP_DIR"]).parent == tmp_path

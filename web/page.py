"""The page: what is where, and which action belongs to what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from cldm.synthesis.saving_options import PRESETS
from common.images import IGNORE, read_image
from common.pictures import colorize
from web import look
from web.handlers import DROPPED, IMAGE, SETTINGS, Handlers, told
from web.masks import fitted, hex_colors
from web.painting import MOST
from web.studio import Studio

SEED = 3  # place among the inputs of a wish
_THUMB = 128  # side of examples in pixels
MODEL: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}  # one at a time; others wait in line


def build(studio: Studio, work: Path) -> gr.Blocks:
    """The page of a studio; its files go to ``work``."""
    handlers = Handlers(studio, work)
    with gr.Blocks(title="TISynth", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        gr.HTML(
            "<h1>TISynth</h1><p>Paint where buildings, roads and fields are; see the satellite image.</p>",
            elem_id="head",
        )
        result = gr.State(None)
        with gr.Row(equal_height=False):
            with gr.Column(scale=9, min_width=340):
                canvas, rest = _mask_column(studio, handlers)
            with gr.Column(scale=7, min_width=300):
                wish = _wish_column(studio, handlers)
            with gr.Column(scale=9, min_width=340):
                outputs, (button, other, stop) = _image_column(studio, handlers, result)
        work_of_button = button.click(
            handlers.paint,
            [canvas, rest, *wish],
            [outputs[0], result, *outputs[1:]],
            show_progress="full",  # the place in line
            show_progress_on=outputs[0],
            **MODEL,
        )
        other.click(handlers.new_seed, None, wish[SEED], queue=False, show_progress="hidden")
        stop.click(None, None, None, cancels=[work_of_button])
    page.queue(max_size=32)
    return page


def _mask_column(studio: Studio, handlers: Handlers) -> tuple[gr.ImageEditor, gr.Dropdown]:
    names, colors = studio.table.names, hex_colors(studio.palette)
    gr.HTML(look.step_title(1, "Mask", "choose a class, then paint"))
    gr.HTML(look.chips(names, colors), elem_id="classes")
    canvas = gr.ImageEditor(
        type="numpy",
        image_mode="RGBA",
        format="png",
        canvas_size=(studio.side, studio.side),
        fixed_canvas=True,
        sources=(),
        transforms=(),
        layers=False,
        brush=gr.Brush(colors=colors, default_color=colors[0], color_mode="fixed", default_size=studio.side // 10),
        eraser=gr.Eraser(default_size=studio.side // 10),
        height=440,
        buttons=[],
        show_label=False,
        elem_id="mask",
    )
    rest = gr.Dropdown(
        [("is left open", IGNORE), *((f"is {name}", k) for k, name in enumerate(names))],
        value=IGNORE,
        label="What is not painted",
        elem_id="rest",
    )
    with gr.Row():
        upload = gr.UploadButton("Upload a mask", size="sm", elem_id="upload-mask", min_width=120)
        photo = gr.UploadButton(
            "Segment a photo", size="sm", visible=studio.segmentor is not None, elem_id="upload-photo", min_width=120
        )
    whole = gr.Checkbox(False, label="Shrink larger files, in place of cutting out their middle")
    upload.upload(told(handlers.load_mask), [upload, whole], canvas)
    photo.upload(told(handlers.segment), [photo, whole], canvas, **MODEL)
    if masks := studio.masks():
        thumbs = [colorize(fitted(studio.table.labels.read(path), _THUMB, True), studio.palette) for path in masks]
        gallery = _gallery(thumbs, "or start from one of these:", "masks")
        gallery.select(told(handlers.choose_mask), None, canvas)
    return canvas, rest


def _wish_column(studio: Studio, handlers: Handlers) -> list[Any]:
    gr.HTML(look.step_title(2, "Style and text"))
    references = studio.references() if studio.model.fuses else []
    reference = gr.Image(
        value=read_image(references[0]) if references else None,
        format="png",
        label="Reference: its light, colors and texture",
        interactive=False,
        height=170,
        buttons=[],
        visible=studio.model.fuses,
        elem_id="reference",
    )
    chosen = gr.State(str(references[0]) if references else None)
    if references:
        thumbs = [fitted(read_image(path), _THUMB, True) for path in references]
        gallery = _gallery(thumbs, "or another one:", "references")
        gallery.select(told(handlers.choose_reference), None, chosen)
    upload = gr.UploadButton("Upload a reference", size="sm", visible=studio.model.fuses, elem_id="upload-reference")
    upload.upload(told(handlers.load_reference), upload, chosen)
    chosen.change(told(handlers.look_at), chosen, reference, show_progress="hidden")
    prompt = gr.Textbox(
        label="Text", placeholder="left empty: a satellite image of the classes in the mask", lines=2, elem_id="prompt"
    )
    preset = gr.Radio(
        list(PRESETS),
        value=studio.options.preset or "fast",
        label="Speed",
        visible=not studio.distilled,
        elem_id="preset",
    )
    with gr.Row(equal_height=True):
        seed = gr.Number(42, label="Seed", precision=0, minimum=0, min_width=110, elem_id="seed")
        count = gr.Slider(1, MOST, value=1, step=1, label="Images", min_width=150, elem_id="count")
    with gr.Accordion("Strengths and guidance", open=False):
        settings = []
        for name, label, least, most, step, value in SETTINGS:
            shown = studio.model.fuses or not name.startswith("reference_")
            given = getattr(studio.options, name, None)
            if name == "scale" and studio.distilled:
                value = 1.0  # has guidance within
            begins = value if given is None else given
            least, most = min(least, begins), max(most, begins)  # the server refuses what lies outside
            settings.append(gr.Slider(least, most, value=begins, step=step, label=label, visible=shown, elem_id=name))
    return [chosen, prompt, preset, seed, count, *settings]


def _image_column(studio: Studio, handlers: Handlers, result: gr.State) -> tuple[list[Any], list[gr.Button]]:
    gr.HTML(look.step_title(3, "Image"))
    with gr.Row():
        buttons = [
            gr.Button("Paint", variant="primary", elem_id="paint", size="md", min_width=105, scale=3),
            gr.Button("New seed", elem_id="new-seed", size="md", min_width=95, scale=2),
            gr.Button("Stop", elem_id="stop", size="md", min_width=56, scale=1),
        ]
    view = gr.Radio(
        [IMAGE, DROPPED],
        value=IMAGE,
        show_label=False,
        interactive=True,
        visible=studio.limits is not None,
        container=False,
        elem_id="view",
    )
    pictures = gr.HTML(handlers.show(None, IMAGE), elem_id="pictures", min_height=60)
    view.change(told(handlers.show), [result, view], pictures, queue=False, show_progress="hidden")
    with gr.Row():
        mask = gr.DownloadButton("Mask (ids)", size="sm", interactive=False, elem_id="download-mask", min_width=110)
        everything = gr.DownloadButton(
            "All of it (zip)", size="sm", interactive=False, elem_id="download-all", min_width=110
        )
    command = gr.Textbox(
        label="The command that makes it again, in the unpacked folder",
        lines=4,
        max_lines=12,
        interactive=False,
        buttons=["copy"],
        elem_id="command",
        elem_classes="small",
    )
    return [pictures, mask, everything, command, view], buttons


def _gallery(thumbs: list[Any], hint: str, name: str) -> gr.Gallery:
    gr.HTML(look.hint(hint))
    return gr.Gallery(
        thumbs,
        show_label=False,
        format="png",
        columns=4,
        height="auto",
        object_fit="cover",
        allow_preview=False,
        buttons=[],
        interactive=False,
        elem_id=name,
    )

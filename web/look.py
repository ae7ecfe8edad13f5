"""How the page looks: colors and fonts that are on every machine, and the pieces of HTML that no component makes."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from PIL import Image

FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica", "Arial", "sans-serif")  # none is fetched
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")

CSS = """
.gradio-container { max-width: 1360px !important; margin: 0 auto !important; padding: 8px 16px 24px !important; }
#head { padding: 0 0 2px; }
#head h1 { font-size: 1.5rem; font-weight: 650; margin: 0; letter-spacing: -0.01em; }
#head p { margin: 2px 0 0; color: var(--body-text-color-subdued); font-size: 0.95rem; }
.step { font-weight: 650; font-size: 1.02rem; margin: 0 0 2px; }
.step span { color: var(--body-text-color-subdued); font-weight: 400; font-size: 0.9rem; margin-left: 6px; }
.chips { display: flex; flex-wrap: wrap; align-items: center; gap: 6px; }
.chips button { display: inline-flex; align-items: center; gap: 7px; padding: 5px 11px 5px 7px; cursor: pointer;
  border: 1px solid var(--border-color-primary); border-radius: 999px; background: var(--background-fill-primary);
  color: var(--body-text-color); font-size: 0.9rem; line-height: 1.25; margin: 0; }
.chips button:hover { border-color: var(--color-accent); }
.chips button[aria-pressed=true] { border-color: var(--color-accent); box-shadow: 0 0 0 1px var(--color-accent); }
.chips i { width: 16px; height: 16px; border-radius: 50%; box-shadow: inset 0 0 0 1px rgb(0 0 0 / 18%); }
.chips i.none { background: repeating-conic-gradient(#ccc 0 25%, #fff 0 50%) 0 0 / 8px 8px; }
.pictures { display: grid; gap: 10px; grid-template-columns: repeat(2, minmax(0, 1fr)); }
.pictures.one { grid-template-columns: minmax(0, 1fr); }
.pictures figure { margin: 0; }
.pictures img, .empty { width: 100%; aspect-ratio: 1; border-radius: 8px; display: block; object-fit: contain;
  background: var(--background-fill-secondary); }
.pictures figcaption { display: flex; justify-content: space-between; gap: 8px; font-size: 0.85rem; padding: 4px 2px 0;
  color: var(--body-text-color-subdued); }
.pictures a { color: var(--link-text-color); }
.empty { display: grid; place-items: center; color: var(--body-text-color-subdued); font-size: 0.95rem; padding: 24px;
  text-align: center; border: 1px dashed var(--border-color-primary); aspect-ratio: 1.35; }
.bar { height: 4px; border-radius: 2px; background: var(--background-fill-secondary); overflow: hidden;
  margin: 6px 0 8px; }
.bar div { height: 100%; background: var(--color-accent); transition: width 0.2s; }
.told { font-size: 0.9rem; margin: 8px 0 0; }
.told ul { margin: 4px 0 0; padding-left: 18px; }
.told p { margin: 0; }
.small textarea { font-family: var(--font-mono); font-size: 0.78rem !important; line-height: 1.45; }
#mask [data-testid=block-label], #mask button[aria-label=Color] { display: none; }
#mask .wrap:has(menu.swatch) { opacity: 0; pointer-events: none !important; }
#mask .toolbar-wrap { top: 0; left: 0; right: auto; width: auto; flex-direction: row; gap: 0; padding: 0 4px; }
#mask .half-container { flex-direction: row; padding: 2px 4px; }
#masks .grid-container, #references .grid-container { grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 6px;
  grid-template-rows: none; grid-auto-rows: auto; }
#masks .grid-wrap, #references .grid-wrap { padding: 0; min-height: 0; max-height: 224px; }
#masks, #references { border-width: 0; }
.gradio-container .html-container { padding: 0 !important; }
#reference img { object-fit: contain; }
#paint, #new-seed, #stop { padding-left: 6px; padding-right: 6px; font-size: 0.95rem; white-space: nowrap; }
.hint { color: var(--body-text-color-subdued); font-size: 0.85rem; margin: 0; }
@media (max-width: 640px) {
  .gradio-container { padding: 4px 4px 16px !important; }
  #mask { height: 360px !important; }
}
"""

# A class's button chooses the brush of its color in the editor, whose own buttons go on to do so, too.
HEAD = """
<script>
let brushWanted = 0;
function brushOf(index) {
  const find = (selector) => document.querySelector('#mask ' + selector);
  const colors = () => document.querySelectorAll('#mask menu.swatch button.color');
  const press = () => document.querySelectorAll('#classes button').forEach((one) =>
    one.setAttribute('aria-pressed', one.dataset.brush === String(index)));
  const tool = find(index < 0 ? 'button[aria-label=Erase]' : 'button[aria-label=Brush]');
  if (!tool) return false;
  tool.click();
  const mine = ++brushWanted;
  if (index < 0) { press(); return true; }
  let tries = 0;
  const choose = () => {
    if (mine !== brushWanted) return;
    if (colors().length > index) {
      colors()[index].click();
      press();
      setTimeout(() => { if (colors().length) find('button[aria-label=Color]')?.click(); }, 50);
    } else {
      if (tries % 12 === 0) find('button[aria-label=Color]')?.click();  // shows the colors
      if (++tries < 120) setTimeout(choose, 40);
    }
  };
  setTimeout(choose, 40);
  return true;
}
document.addEventListener('click', (event) => {
  const chip = event.target.closest('#classes button');
  if (chip) brushOf(Number(chip.dataset.brush));
});
const untilThere = setInterval(() => {
  if (document.querySelector('#mask canvas') && brushOf(0)) clearInterval(untilThere);
}, 250);
</script>
"""


def theme() -> Any:
    """Gradio's plain theme in calm colors, with the system's fonts."""
    import gradio as gr

    look = gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        secondary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_md,
        font=list(FONTS),
        font_mono=list(MONO),
    )
    return look.set(
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_text_color="white",
        slider_color="*primary_600",
        block_label_text_size="0.85rem",
        block_title_text_size="0.9rem",
    )


def chips(names: Sequence[str], colors: Sequence[str]) -> str:
    """A button for each class, and one that rubs out."""
    buttons = [
        f'<button type="button" data-brush="{i}" aria-pressed="false"><i style="background:{color}"></i>{escape(name)}'
        "</button>"
        for i, (name, color) in enumerate(zip(names, colors, strict=True))
    ]
    buttons.append('<button type="button" data-brush="-1" aria-pressed="false"><i class="none"></i>rub out</button>')
    return f'<div class="chips" role="group" aria-label="classes">{"".join(buttons)}</div>'


def step_title(number: int, title: str, hint: str = "") -> str:
    """The heading of a column."""
    told = f"<span>{escape(hint)}</span>" if hint else ""
    return f'<div class="step">{number}. {escape(title)}{told}</div>'


def hint(text: str) -> str:
    """A line above a gallery."""
    return f'<p class="hint">{escape(text)}</p>'


def empty(text: str) -> str:
    """Where images will be."""
    return f'<div class="empty">{escape(text)}</div>'


def progress(step: int, steps: int, text: str) -> str:
    """How far the work is."""
    bar = f'<div class="bar"><div style="width:{100 * step / steps:.0f}%"></div></div>'
    return f'<div class="told">{escape(text)}</div>{bar}'


def pictures(sources: Sequence[str], captions: Sequence[str]) -> str:
    """Pictures side by side.

    Args:
        sources: data: addresses.
        captions: HTML below each.
    """
    figures = "".join(
        f'<figure><img src="{source}" alt="image {i + 1}"><figcaption>{caption}</figcaption></figure>'
        for i, (source, caption) in enumerate(zip(sources, captions, strict=True))
    )
    return f'<div class="pictures{" one" if len(sources) == 1 else ""}">{figures}</div>'


def told(text: str, reasons: Sequence[str] = ()) -> str:
    """A paragraph and a list."""
    listed = f"<ul>{''.join(f'<li>{escape(reason)}</li>' for reason in reasons)}</ul>" if reasons else ""
    return f'<div class="told"><p>{escape(text)}</p>{listed}</div>'


def jpeg_address(pixels: NDArray[Any]) -> str:
    """Pixels (H, W, 3) uint8 as a data: address, for the eye."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{b64encode(buffer.getvalue()).decode()}"


def png_address(path: Path) -> str:
    """A PNG file as it is, as a data: address."""
    return f"data:image/png;base64,{b64encode(path.read_bytes()).decode()}"


def download(path: Path) -> str:
    """A link that saves a file as it is."""
    return f'<a href="{png_address(path)}" download="{escape(path.name)}">download</a>'

"""TISynth: satellite images from a semantic mask, a reference image and a text.

import numpy as np
from diffusers import DiffusionPipeline
from PIL import Image

pipe = DiffusionPipeline.from_pretrained("FOLDER", trust_remote_code=True)
mask = np.asarray(Image.open("mask.png"))  # class ids, 255 for no class
pipe(mask, Image.open("reference.jpg"), "a satellite image of road water").images[0].save("made.png")
"""

import inspect
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel, DiffusionPipeline, ImagePipelineOutput, UNet2DConditionModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase


class TISynthPipeline(DiffusionPipeline):
    """Paints masks in the style of references.

    Args:
        vae: pixels to latents and back.
        text_encoder: CLIP's text transformer.
        tokenizer: its tokenizer.
        unet: TISynth's U-Net, or Stable Diffusion's where there is no reference branch.
        controlnet: the mask branch.
        scheduler: any of diffusers' that takes the noise schedule; the published one is DDIM.
        reference_branch: the branch that reads the reference's latent; without one, a plain ControlNet.
        factor: pixels a latent pixel.
        multiple: height and width of images must be multiples of this many pixels.
        hints: what the mask branch reads of a class id: ``values``, a row of channels a class, and ``ignored``, their
            value where the id is 255; ``classes``, their names. Without it, id / 255 in three channels.
        only_mid_control: without a reference branch: the mask's features join at the middle block alone.
        bands: of other images than RGB of 8 bits: ``ranges`` (low and high of each band, -1 and 1 for the networks),
            ``take`` (numbers of the bands in files, from 1), ``scales`` and ``offsets`` (of the numbers in files),
            ``nodata``, ``dtype`` and ``names`` of the training images, and ``shown``, the bands that pictures show.
        steps: denoising steps of a call that names none.
        scale: guidance scale of a call that names none; a distilled model has guidance within, and takes 1.
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _optional_components = ["reference_branch"]

    def __init__(
        self,
        vae: ModelMixin,
        text_encoder: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        unet: UNet2DConditionModel,
        controlnet: ControlNetModel,
        scheduler: SchedulerMixin,
        reference_branch: ControlNetModel | None = None,
        factor: int = 8,
        multiple: int = 64,
        hints: dict[str, Any] | None = None,
        only_mid_control: bool = False,
        bands: dict[str, Any] | None = None,
        steps: int = 50,
        scale: float = 9.0,
    ) -> None:
        super().__init__()
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            controlnet=controlnet,
            scheduler=scheduler,
            reference_branch=reference_branch,
        )
        self.register_to_config(
            factor=factor,
            multiple=multiple,
            hints=hints,
            only_mid_control=only_mid_control,
            bands=bands,
            steps=steps,
            scale=scale,
        )
        self.image_processor = VaeImageProcessor(vae_scale_factor=factor)

    def encode_mask(self, mask: Any) -> Tensor:
        """What the mask branch reads (B, C', H, W) of class ids (H, W) or (B, H, W), 255 for no class.

        Raises:
            ValueError: an id that is neither a class nor 255.
        """
        ids = torch.from_numpy(np.asarray(mask).astype(np.int64))
        ids = ids[None] if ids.ndim == 2 else ids
        hints = self.config.hints
        if hints is None:
            return (ids[:, None] / 255).expand(-1, 3, -1, -1)
        values = torch.tensor(hints["values"], dtype=torch.float32)  # (N, C')
        if bool(((ids != 255) & ((ids < 0) | (ids >= len(values)))).any()):
            raise ValueError(f"mask: class ids are 0 to {len(values) - 1}, and 255 for no class")
        table = torch.full((256, values.shape[1]), hints["ignored"])
        table[: len(values)] = values
        return table[ids].permute(0, 3, 1, 2)

    def encode_reference(self, reference: Any, size: tuple[int, int]) -> Tensor:
        """The scaled latent (B, C, h, w) of reference images: one, several, or a tensor (B, bands, H, W) in [-1, 1].

        Args:
            reference: images of PIL; of stated bands, numbers (H', W', bands) as files have them. Those of another
                shape than ``size`` are cut to it, in the middle.
            size: height and width of the mask.
        """
        if not isinstance(reference, Tensor):
            given = reference if isinstance(reference, list) else [reference]
            pictures = [self._fitted(one, size) for one in given]  # (H, W, bands), 0..255
            reference = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 127.5 - 1
        reference = reference.to(self._execution_device, self.vae.dtype)
        return self.vae.encode(reference).latent_dist.mode() * self.vae.config.scaling_factor

    def _fitted(self, image: Any, size: tuple[int, int]) -> NDArray[Any]:
        """An image as float32 (H, W, bands) in 0..255, of the size given as height and width."""
        height, width = size

        def fit(picture: Image.Image) -> Image.Image:
            if picture.size == (width, height):
                return picture
            scale = min(picture.width / width, picture.height / height)
            part = min(scale * width, picture.width), min(scale * height, picture.height)
            # from a whole pixel on, so that a part that already has its size is not blurred by half a pixel
            left, top = (picture.width - part[0]) // 2, (picture.height - part[1]) // 2
            box = left, top, left + part[0], top + part[1]
            return picture.resize((width, height), Image.Resampling.BICUBIC, box)

        if self.config.bands is None:
            return np.asarray(fit(image.convert("RGB")), dtype=np.float32)
        values = self.scaled(np.asarray(image))
        layers = [np.asarray(fit(Image.fromarray(layer))) for layer in np.moveaxis(values, -1, 0)]
        return np.dstack(layers).clip(0, 255)

    def scaled(self, numbers: NDArray[Any]) -> NDArray[Any]:
        """Numbers of a file (H, W, bands) as float32 in 0..255 of each band's range; what has no data is 0.

        Raises:
            ValueError: fewer bands than are read.
        """
        bands = self.config.bands
        if numbers.ndim != 3 or numbers.shape[-1] < max(bands["take"]):
            raise ValueError(f"reference: {numbers.shape}; must be (height, width, bands), bands {bands['take']}")
        numbers = numbers[..., [number - 1 for number in bands["take"]]]
        low, high = np.array(bands["ranges"]).T
        meant = numbers * np.array(bands["scales"]) + np.array(bands["offsets"])
        values = np.nan_to_num((meant - low) / (high - low)).clip(0, 1) * 255
        values[_gaps(numbers, bands["nodata"])] = 0
        return values.astype(np.float32)

    def numbers(self, images: Tensor) -> NDArray[Any]:
        """Images (B, bands, H, W), about [-1, 1], as numbers (B, H, W, bands) of the training images' type.

        All pixels have data: a number that says otherwise becomes the next one.
        """
        bands = self.config.bands
        nodata = bands["nodata"]
        values = (images.float().clamp(-1, 1).permute(0, 2, 3, 1).cpu().numpy().astype(np.float64) + 1) / 2
        low, high = np.array(bands["ranges"]).T
        stored = (values * (high - low) + low - np.array(bands["offsets"])) / np.array(bands["scales"])
        dtype = np.dtype(bands["dtype"])
        if dtype.kind != "f":
            limits = np.iinfo(dtype)
            stored = np.rint(stored).clip(limits.min, limits.max)
        written = stored.astype(dtype)
        if nodata is not None:
            gaps = _gaps(written, nodata)
            said = written[gaps]
            if dtype.kind == "f":
                beside = np.nextafter(said, dtype.type(1 if nodata == 0 else 0))
            else:
                beside = said + 1 if nodata < limits.max else said - 1
            written[gaps] = np.where(said == nodata, beside, said)
        return written

    def encode_texts(self, texts: list[str]) -> Tensor:
        """Text embeddings (B, L, D); what is longer than the encoder reads is cut."""
        tokens = self.tokenizer(
            texts,
            padding="max_length",
            max_length=self.text_encoder.config.max_position_embeddings,
            truncation=True,
            return_tensors="pt",
        )
        return self.text_encoder(tokens.input_ids.to(self._execution_device))[0]

    def predict(self, x: Tensor, t: Tensor, text: Tensor, hint: Tensor, reference: Tensor | None) -> Tensor:
        """The networks' prediction (B, C, h, w) of a noisy latent: both branches, then the U-Net that reads them."""
        maps, middle = self.controlnet(x, t, text, hint, return_dict=False)
        if self.reference_branch is None:
            maps = [torch.zeros_like(one) for one in maps] if self.config.only_mid_control else maps
            return self.unet(
                x,
                t,
                text,
                down_block_additional_residuals=maps,
                mid_block_additional_residual=middle,
                return_dict=False,
            )[0]
        reference_maps, reference_middle = self.reference_branch(x, t, text, reference, return_dict=False)
        features = ([*maps, middle], [*reference_maps, reference_middle])
        return self.unet(x, t, text, *features, return_dict=False)[0]

    @torch.no_grad()
    def __call__(
        self,
        mask: Any,
        reference: Any = None,
        prompt: str | list[str] = "",
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str = "",
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        guidance_rescale: float = 0.0,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Paints.

        Args:
            mask: class ids (H, W) or (B, H, W) as numbers or an image of them, 255 for no class; or what the mask
                branch reads, a float tensor (B, C', H, W).
            reference: see ``encode_reference``; unused without a reference branch.
            prompt: one for all images, or one each.
            num_inference_steps: denoising steps; by default 50, or the 4 of a distilled model.
            guidance_scale: of classifier-free guidance; 1 is none. By default 9, or 1 for a distilled model.
            negative_prompt: what guidance leads away from.
            eta: share of fresh noise a step, for DDIM.
            generator: of the noise.
            latents: the noise itself, standard normal (B, C, h, w).
            output_type: ``pil``, ``np``, ``pt`` (in [0, 1]), or ``latent``; of stated bands also ``numbers``, see
                there, where ``pil`` shows three of them.
            return_dict: an output object, or a tuple.
            guidance_rescale: share by which guidance keeps the prediction's spread, against colors too strong.

        Raises:
            ValueError: a size that the networks cannot have, ids that are no classes, or no reference.
        """
        device, dtype = self._execution_device, self.unet.dtype
        num_inference_steps = self.config.steps if num_inference_steps is None else num_inference_steps
        guidance_scale = self.config.scale if guidance_scale is None else guidance_scale
        is_hint = isinstance(mask, Tensor) and mask.is_floating_point() and mask.ndim == 4
        hint = (mask if is_hint else self.encode_mask(mask)).to(device, dtype)
        count, _, height, width = hint.shape
        if height % self.config.multiple or width % self.config.multiple:
            raise ValueError(f"mask: {height} x {width} pixels; must be multiples of {self.config.multiple}")
        reference_latent = None
        if self.reference_branch is not None:
            if reference is None:
                raise ValueError("reference: this model needs one")
            reference_latent = self.encode_reference(reference, (height, width)).to(dtype).expand(count, -1, -1, -1)
        prompts = [prompt] * count if isinstance(prompt, str) else list(prompt)
        text = self.encode_texts(prompts).to(dtype)
        guided = guidance_scale != 1
        if guided:  # without the text, and with it, in one batch
            text = torch.cat([self.encode_texts([negative_prompt] * count).to(dtype), text])
            hint = torch.cat([hint, hint])
            reference_latent = None if reference_latent is None else torch.cat([reference_latent, reference_latent])

        self.scheduler.set_timesteps(num_inference_steps, device=device)
        if latents is None:
            shape = (count, self.unet.config.in_channels, height // self.config.factor, width // self.config.factor)
            latents = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        x = latents.to(device, torch.float32) * self.scheduler.init_noise_sigma  # the solver's arithmetic is in 32 bit
        known = inspect.signature(self.scheduler.step).parameters
        extra = {name: value for name, value in (("eta", eta), ("generator", generator)) if name in known}
        for t in self.progress_bar(self.scheduler.timesteps):
            taken = self.scheduler.scale_model_input(torch.cat([x, x]) if guided else x, t).to(dtype)
            prediction = self.predict(taken, t, text, hint, reference_latent).float()
            if guided:
                without, with_text = prediction.chunk(2)
                prediction = without + guidance_scale * (with_text - without)
                if guidance_rescale:
                    prediction = rescale_noise_cfg(prediction, with_text, guidance_rescale)
            x = self.scheduler.step(prediction, t, x, **extra).prev_sample

        images: Any = x
        if output_type != "latent":
            scaled = (x / self.vae.config.scaling_factor).to(self.vae.dtype)
            images = self.vae.decode(scaled, return_dict=False)[0]
            if self.config.bands is not None and output_type == "pil":
                images = images[:, self.config.bands["shown"]]
            if self.config.bands is not None and output_type == "numbers":
                images = self.numbers(images)
            else:
                images = self.image_processor.postprocess(images, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)


def _gaps(numbers: NDArray[Any], nodata: float | None) -> NDArray[np.bool_]:
    """Which pixels (...) of (..., bands) have no data: a band is no finite number, or ``nodata``.

    What bands may well show by themselves, 0 or any number without a sign, stands for no data where all bands have it.
    """
    none = ~np.isfinite(numbers).all(-1)
    if nodata is None:
        return none
    said = numbers == nodata
    everywhere = nodata == 0 or numbers.dtype.kind == "u"
    return none | (said.all(-1) if everywhere else said.any(-1))
